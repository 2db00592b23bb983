"""Models as their config.json describes them: excerpts of real ones, and folders that look like them."""

import json
from pathlib import Path
from typing import Any

JSON = dict[str, Any]

QWEN25_7B: JSON = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "torch_dtype": "bfloat16", "hidden_size": 3584,
    "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 32768,
}  # fmt: skip
LLAMA31_8B: JSON = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_size": 4096,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
}  # fmt: skip
MIXTRAL_8X7B: JSON = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "torch_dtype": "bfloat16", "hidden_size": 4096,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32768,
    "sliding_window": None,
}  # fmt: skip
DEEPSEEK_V3: JSON = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "torch_dtype": "bfloat16",
    "auto_map": {"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"},
    "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128,
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
    "max_position_embeddings": 163840,
    "quantization_config": {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
    },
}  # fmt: skip
GEMMA3_27B: JSON = {
    "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "torch_dtype": "bfloat16",
    "text_config": {
        "model_type": "gemma3_text", "hidden_size": 5376, "num_hidden_layers": 62, "num_attention_heads": 32,
        "num_key_value_heads": 16, "head_dim": 128, "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16},
}  # fmt: skip
GEMMA3_4B: JSON = {  # leaves out what is a default of Gemma3TextConfig
    "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34, "sliding_window": 1024,
    },
}  # fmt: skip
GPT_OSS_20B: JSON = {
    "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_size": 2880, "num_hidden_layers": 24,
    "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 12, "max_position_embeddings": 131072,
    "quantization_config": {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
    },
}  # fmt: skip
GPT2: JSON = {
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12,
    "n_positions": 1024,
}  # fmt: skip
FALCON_7B: JSON = {
    "architectures": ["FalconForCausalLM"], "model_type": "falcon", "hidden_size": 4544, "num_hidden_layers": 32,
    "num_attention_heads": 71, "multi_query": True,
}  # fmt: skip
AWQ: JSON = QWEN25_7B | {
    "quantization_config": {
        "quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True,
        "modules_to_not_convert": None,
    }
}  # fmt: skip
GPTQ: JSON = QWEN25_7B | {
    "quantization_config": {
        "quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True, "true_sequential": True,
    }
}  # fmt: skip
BITSANDBYTES: JSON = LLAMA31_8B | {
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
}
_FP8_GROUP: JSON = {
    "input_activations": {"dynamic": True, "num_bits": 8, "strategy": "token", "type": "float"},
    "targets": ["Linear"],
    "weights": {"dynamic": False, "num_bits": 8, "strategy": "channel", "symmetric": True, "type": "float"},
}
COMPRESSED_FP8: JSON = LLAMA31_8B | {  # RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8-dynamic
    "quantization_config": {
        "config_groups": {"group_0": _FP8_GROUP}, "format": "float-quantized", "ignore": ["lm_head"],
        "quant_method": "compressed-tensors", "quantization_status": "compressed",
    }
}  # fmt: skip
COMPRESSED_NVFP4: JSON = LLAMA31_8B | {
    "quantization_config": {
        "config_groups": {"group_0": {"format": "nvfp4-pack-quantized", "weights": {"num_bits": 4, "type": "float"}}},
        "format": "nvfp4-pack-quantized", "quant_method": "compressed-tensors",
    }
}  # fmt: skip
COMPRESSED_MIXED: JSON = LLAMA31_8B | {
    "quantization_config": {
        "config_groups": {
            "group_0": {"format": "float-quantized", "weights": {"num_bits": 8}},
            "group_1": {"format": "mxfp4-pack-quantized", "weights": {"num_bits": 4}},
        },
        "format": "mixed-precision", "quant_method": "compressed-tensors",
    }
}  # fmt: skip
MODELOPT_NVFP4: JSON = {  # hf_quant_config.json of nvidia/Llama-3.1-8B-Instruct-FP4
    "producer": {"name": "modelopt", "version": "0.23.0"},
    "quantization": {
        "quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16, "exclude_modules": ["lm_head"],
    },
}  # fmt: skip
MODELOPT_FP8: JSON = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}


def safetensors(path: Path, tensors: dict[str, tuple[str, int]]) -> None:
    """A file of tensors as (dtype, bytes) by name. What lies behind its header is a hole."""
    at = 0
    described: JSON = {"__metadata__": {"format": "pt"}}
    for name, (dtype, size) in tensors.items():
        described[name] = {"dtype": dtype, "shape": [size], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(described).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)


def folder(path: Path, config: JSON, files: dict[str, dict[str, tuple[str, int]]]) -> Path:
    """A model's folder: its config.json and its files of tensors."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    for name, tensors in files.items():
        safetensors(path / name, tensors)
    return path

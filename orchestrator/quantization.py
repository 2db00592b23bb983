"""How a model's weights are quantised, and whether an engine loads that. Pure, but for the table in data/.

A name such as `…-FP8` promises nothing: what counts is `quantization_config.quant_method` in the model's config.json,
or the hf_quant_config.json of NVIDIA's ModelOpt.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from orchestrator.catalogue import DATA
from orchestrator.verdict import Level, Verdict

CHECK = "quantization"
_TEXT = 60  # characters of a word of a foreign file in an answer


@dataclass(frozen=True)
class Quantization:
    """`method` is None for weights that are not quantised. `algorithm` is ModelOpt's quant_algo, `formats` are those of
    compressed-tensors, `read_from` is the file and key that said it."""

    method: str | None = None
    algorithm: str | None = None
    bits: int | None = None
    formats: tuple[str, ...] = ()
    read_from: str | None = None


class Method(BaseModel):
    """What is known of one method: see `about` in data/quantization.json."""

    model_config = ConfigDict(frozen=True)

    capability: dict[str, int]
    formats: dict[str, dict[str, int]] = {}
    caution: str = ""


class Loader(BaseModel):
    """An engine, and the methods that the versions of it which were looked at load. The versions are in their order."""

    model_config = ConfigDict(frozen=True)

    name: str
    versions: list[str]
    source: str
    option: str
    methods: dict[str, Method]

    def versions_like(self, version: str | None) -> list[str]:
        """Those that speak for `version`: the last one looked at that is not newer; all where it is not known."""
        if version is None:
            return self.versions
        older = [known for known in self.versions if _ordered(known) <= _ordered(version)]
        return [older[-1] if older else self.versions[0]]


def read_loaders() -> dict[str, Loader]:
    """The shipped table, by engine."""
    known = json.loads((DATA / "quantization.json").read_text(encoding="utf-8"))
    return {engine: Loader.model_validate(loader) for engine, loader in known["engines"].items()}


def quantization_of(config: Mapping[str, Any], modelopt: Mapping[str, Any], *, gguf: bool = False) -> Quantization:
    """What the contents of config.json and hf_quant_config.json say; both may be empty, and hold anything."""
    if gguf:
        return Quantization("gguf", read_from="the weights' file format")
    for where, part in (("config.json", config), ("config.json: text_config", config.get("text_config"))):
        for key in ("quantization_config", "compression_config"):
            found = part.get(key) if isinstance(part, Mapping) else None
            if isinstance(found, Mapping) and found:
                return _described(found, f"{where}: {key}", compressed=key == "compression_config")
    found = modelopt.get("quantization")
    if isinstance(found, Mapping) and found.get("quant_algo"):
        return _described(found, "hf_quant_config.json: quantization", modelopt=True)
    return Quantization()


def _described(
    found: Mapping[str, Any], read_from: str, *, compressed: bool = False, modelopt: bool = False
) -> Quantization:
    algorithm = _word(found.get("quant_algo"))
    method = (_word(found.get("quant_method")) or "").lower()
    if method in ("compressed-tensors", "compressed_tensors") or (compressed and not method):
        return Quantization("compressed-tensors", None, _bits(found), _formats(found), read_from)
    if method in ("modelopt", "modelopt_fp4", "modelopt_fp8") or modelopt or (algorithm and not method):
        return Quantization(_of_modelopt(algorithm, method), algorithm, _bits(found), (), read_from)
    if method == "intel/auto-round":
        method = "auto-round"
    return Quantization(method or "unknown", algorithm, _bits(found), (), read_from)


def _of_modelopt(algorithm: str | None, method: str) -> str:
    """The engines' name for one of ModelOpt's algorithms."""
    upper = (algorithm or "").upper()
    for part, name in (("MIXED", "modelopt_mixed"), ("FP4", "modelopt_fp4"), ("MXFP8", "modelopt_mxfp8")):
        if part in upper:
            return name
    return "modelopt_fp4" if method == "modelopt_fp4" and not upper else "modelopt"


def _formats(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Of all the layers: each group may have one of its own."""
    groups = found.get("config_groups")
    parts = list(groups.values()) if isinstance(groups, Mapping) else []
    given = [_word(part.get("format")) for part in [*parts, found] if isinstance(part, Mapping)]
    return tuple(dict.fromkeys(word for word in given if word and word != "mixed-precision"))


def _bits(found: Mapping[str, Any]) -> int | None:
    """Of a weight, where the file says it in one of the usual ways."""
    for key, bits in (("load_in_4bit", 4), ("load_in_8bit", 8)):
        if found.get(key) is True:
            return bits
    groups = found.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = first.get("weights") if isinstance(first, Mapping) else None
    for part, key in ((found, "bits"), (found, "w_bit"), (weights, "num_bits")):
        value = part.get(key) if isinstance(part, Mapping) else None
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 64:
            return value
    return None


def _word(value: object) -> str | None:
    return value.strip()[:_TEXT] if isinstance(value, str) and value.strip() else None


def judge(
    loader: Loader, quantization: Quantization, *, version: str | None = None, capability: int | None = None
) -> Verdict:
    """Whether an engine loads weights that are quantised so.

    `version` is the engine's where it is known, `capability` the GPU's compute capability times ten.
    """
    if quantization.method is None:
        return _not_quantised(loader)
    method = loader.methods.get(quantization.method)
    asked = loader.versions_like(version)
    having = [] if method is None else [known for known in asked if known in method.capability]
    named = f"quant_method {quantization.method!r} ({quantization.read_from})"
    if method is None or not having:
        return _not_there(loader, named, asked, version)
    refusal = _format_refused(loader, method, quantization, having, capability)
    if refusal is not None:
        return refusal
    least = min(method.capability[known] for known in having)
    if capability is not None and capability < least:
        return _too_old(loader, named, least, capability)
    if len(having) < len(asked):
        lacking = [known for known in asked if known not in having]
        text = f"{named} is loaded by {loader.name} {_listed(having)}, but not by {_listed(lacking)}"
        return Verdict(CHECK, Level.WARNING, text, f"look which {loader.name} your site runs")
    if method.caution:
        text = f"{named} on {loader.name} may fail: {method.caution}"
        return Verdict(CHECK, Level.WARNING, text, _another(loader))
    return Verdict(CHECK, Level.OK, f"{named} is loaded by {loader.name} {_listed(having)}")


def _not_quantised(loader: Loader) -> Verdict:
    if list(loader.methods) == ["gguf"]:
        text = f"these weights are no GGUF, which is all that {loader.name} loads"
        return Verdict(CHECK, Level.ERROR, text, "choose a GGUF of the model, or a recipe of vLLM or SGLang")
    return Verdict(CHECK, Level.OK, "the weights are not quantised")


def _not_there(loader: Loader, named: str, asked: list[str], version: str | None) -> Verdict:
    text = f"{loader.name} {_listed(asked)} does not load {named}"
    if version is not None and _ordered(version) > _ordered(loader.versions[-1]):
        return Verdict(CHECK, Level.UNKNOWN, f"{text}; whether {version} does is not known", _another(loader))
    return Verdict(CHECK, Level.ERROR, text, _another(loader))


def _format_refused(
    loader: Loader, method: Method, quantization: Quantization, having: list[str], capability: int | None
) -> Verdict | None:
    """For the formats of compressed-tensors that an engine has no code for."""
    for name in quantization.formats if method.formats else ():
        known = [least for version, least in method.formats.get(name, {}).items() if version in having]
        if not known:
            text = f"{loader.name} {_listed(having)} has no code for the compressed-tensors format {name!r}"
            return Verdict(CHECK, Level.ERROR, text, _another(loader))
        if capability is not None and capability < min(known):
            return _too_old(loader, f"the compressed-tensors format {name!r}", min(known), capability)
    return None


def _too_old(loader: Loader, named: str, least: int, capability: int) -> Verdict:
    text = (
        f"{loader.name} loads {named} on GPUs of compute capability {least / 10:.1f} and up; this one has "
        f"{capability / 10:.1f}"
    )
    return Verdict(CHECK, Level.ERROR, text, "choose newer GPUs, or the model without quantisation, in BF16")


def _another(loader: Loader) -> str:
    if list(loader.methods) == ["gguf"]:
        return "choose a GGUF of the model, or a recipe of vLLM or SGLang"
    return "choose the model in BF16 or FP16, or one quantised by ModelOpt, AWQ or GPTQ, or another engine"


def _listed(versions: list[str]) -> str:
    return " and ".join(versions)


def _ordered(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"[0-9]{1,9}", version)[:4])

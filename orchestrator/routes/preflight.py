"""Preflight: what can be said of a service before it is started."""

from datetime import datetime
from typing import Annotated, Any, Self

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from orchestrator.deps import App
from orchestrator.errors import Invalid
from orchestrator.preflight import Known, Report, preflight
from orchestrator.routes.shapes import StartRequest
from orchestrator.routes.strict import StrictRoute
from orchestrator.verdict import Level

router = APIRouter(tags=["services"], route_class=StrictRoute)


class PreflightRequest(BaseModel):
    """The body of `POST /services`, or a model alone. `model` is short for `config.model`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"model": "Qwen/Qwen2.5-7B-Instruct"},
                {
                    "recipe_name": "inference/vllm-single-node",
                    "config": {"model": "Qwen/Qwen2.5-7B-Instruct", "gpu": 1, "max_model_len": 16384},
                    "gpu_memory_gb": 40,
                },
            ]
        },
    )

    recipe_name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)] = (
        "inference/vllm-single-node"
    )
    config: dict[str, Any] = {}
    model: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None
    gpu_memory_gb: Annotated[
        float | None, Field(gt=0, le=10_000, description="Of one GPU; else [site] gpu_memory_gb, else by gpu_type.")
    ] = None


class VerdictShape(BaseModel):
    """`error`: it will fail; `warning`: it may; `unknown`: nothing can be said."""

    check: str
    level: Level
    message: str
    next_step: str


class MemoryShape(BaseModel):
    """Bytes, on all GPUs together but for `gpu_memory_bytes`; null where it is not known. The cache is for one
    sequence of `max_model_len` tokens."""

    weights_bytes: int | None
    kv_cache_bytes_per_token: int | None
    kv_cache_bytes: int | None
    max_model_len: int | None
    total_bytes: int | None
    gpus: int
    gpu_memory_bytes: int | None
    fits: bool | None


class QuantizationShape(BaseModel):
    """`quant_method` is null for weights that are not quantised; `read_from` says which file says so."""

    quant_method: str | None
    algorithm: str | None
    bits: int | None
    formats: list[str]
    read_from: str | None


class PreflightReport(BaseModel):
    """`ok` is false when one of the verdicts is an error."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "ok": True,
                    "model": "Qwen/Qwen2.5-7B-Instruct",
                    "engine": "vllm",
                    "verdicts": [
                        {
                            "check": "quantization",
                            "level": "ok",
                            "message": "the weights are not quantised",
                            "next_step": "",
                        }
                    ],
                    "memory": {
                        "weights_bytes": 15_231_271_888,
                        "kv_cache_bytes_per_token": 57_344,
                        "kv_cache_bytes": 1_879_048_192,
                        "max_model_len": 32_768,
                        "total_bytes": 18_720_932_816,
                        "gpus": 1,
                        "gpu_memory_bytes": 42_949_672_960,
                        "fits": True,
                    },
                    "quantization": {
                        "quant_method": None,
                        "algorithm": None,
                        "bits": None,
                        "formats": [],
                        "read_from": None,
                    },
                    "estimated_start": "2026-11-21T12:10:00Z",
                    "script_ok": True,
                }
            ]
        }
    )

    ok: bool
    model: str | None
    engine: str
    verdicts: list[VerdictShape]
    memory: MemoryShape | None
    quantization: QuantizationShape | None
    estimated_start: datetime | None
    script_ok: bool

    @classmethod
    def of(cls, report: Report) -> Self:
        quantised = report.quantization
        return cls(
            ok=report.ok,
            model=report.model,
            engine=report.engine,
            verdicts=[VerdictShape(**vars(verdict)) for verdict in report.verdicts],
            memory=None if report.memory is None else MemoryShape(**vars(report.memory)),
            quantization=None
            if quantised is None
            else QuantizationShape(
                quant_method=quantised.method,
                algorithm=quantised.algorithm,
                bits=quantised.bits,
                formats=list(quantised.formats),
                read_from=quantised.read_from,
            ),
            estimated_start=report.estimated_start,
            script_ok=report.script_ok,
        )


@router.post("/preflight", summary="Look at a service before it is started")
async def look(app: App, wanted: PreflightRequest) -> PreflightReport:
    """Says whether the model is there, whether the engine loads its quantisation, whether it fits the GPUs, and when
    the job would start. Starts and records nothing. A wrong value in `config` is a 422, as in `POST /services`.
    """
    known = Known(app.catalogue, app.loaders)
    config = _with_model(wanted)
    report = await preflight(app.services, app.hub, known, wanted.recipe_name, config, wanted.gpu_memory_gb)
    return PreflightReport.of(report)


class Rendered(BaseModel):
    """`script` is for a job of its own; secrets are not in it, they are in a file beside it."""

    script: str


@router.post("/render", summary="Show the script of a service that is not started")
async def render(app: App, wanted: StartRequest) -> Rendered:
    """The batch script that `POST /services` would submit with the same body. Submits and records nothing."""
    return Rendered(script=await app.services.rendered(wanted.recipe_name, wanted.config))


def _with_model(wanted: PreflightRequest) -> dict[str, Any]:
    if wanted.model is None:
        return wanted.config
    given = wanted.config.get("model", wanted.model)
    if given != wanted.model:
        raise Invalid(f"model is {wanted.model[:200]!r}, but config.model is another one: send only one of them")
    return wanted.config | {"model": wanted.model}

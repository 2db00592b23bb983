"""Which models vLLM can run: from shipped data, and from the Hugging Face Hub."""

from datetime import datetime
from typing import Annotated, Any, Self

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from orchestrator.catalogue import Catalogue
from orchestrator.deps import App
from orchestrator.hub import HubModel, SortBy, model_options
from orchestrator.routes.strict import StrictRoute

router = APIRouter(tags=["models"], route_class=StrictRoute)


def _example(**values: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [values]})


class AvailableModels(BaseModel):
    """What vLLM runs, as far as this version of Sluicegate knows."""

    model_config = _example(
        model_source="Hugging Face Hub (https://huggingface.co)",
        vllm_version="0.32.0",
        supported_architectures={
            "text-generation": ["LlamaForCausalLM", "Qwen2ForCausalLM"],
            "vision-language": ["Qwen2_5_VLForConditionalGeneration"],
            "embedding": ["BertModel", "XLMRobertaModel"],
        },
        notes=["Models that are gated need a Hugging Face token."],
        examples={"text-generation": ["Qwen/Qwen2.5-0.5B-Instruct"]},
        how_to_find_models=["GET /api/v1/vllm/search-models?query=qwen&limit=10"],
        resource_guidelines={"7B to 9B": "1 GPU of 40 GB, memory 32G, cpu 8"},
    )

    model_source: str
    vllm_version: str = Field(description="The vLLM that the architectures are those of; a site's own may differ.")
    supported_architectures: dict[str, list[str]] = Field(
        description="By kind: text-generation, vision-language (any model that also reads images, audio or video), "
        "embedding (also reranking, classification and reward models)."
    )
    notes: list[str]
    examples: dict[str, list[str]]
    how_to_find_models: list[str]
    resource_guidelines: dict[str, str]


class FoundModel(BaseModel):
    """A model of the hub. `architecture` is null where it has no config.json, as GGUF files have none."""

    model_config = _example(
        id="Qwen/Qwen2.5-7B-Instruct",
        downloads=12_345_678,
        likes=900,
        architecture="Qwen2ForCausalLM",
        vllm_compatible=True,
        created_at="2024-09-16T11:55:40Z",
        tags=["transformers", "safetensors", "qwen2", "text-generation"],
    )

    id: str
    downloads: int = Field(description="In the last 30 days.")
    likes: int
    architecture: str | None
    vllm_compatible: bool = Field(description="vLLM has code for this architecture; nothing else was checked.")
    created_at: datetime | None
    tags: list[str]

    @classmethod
    def of(cls, model: HubModel, catalogue: Catalogue) -> Self:
        return cls(
            id=model.id,
            downloads=model.downloads,
            likes=model.likes,
            architecture=next(iter(model.architectures), None),
            vllm_compatible=catalogue.runs(model.architectures),
            created_at=model.created_at,
            tags=list(model.tags),
        )


class FoundModels(BaseModel):
    """`total` counts `models`: the hub does not say how many more there are."""

    models: list[FoundModel]
    total: int


class ModelInfo(BaseModel):
    """A model of the hub. `size_bytes` is that of the weights that vLLM loads, `size_gb` the same in 10^9 bytes."""

    model_config = _example(
        id="Qwen/Qwen2.5-7B-Instruct",
        architecture="Qwen2ForCausalLM",
        vllm_compatible=True,
        task_type="text-generation",
        downloads=12_345_678,
        likes=900,
        tags=["transformers", "safetensors", "qwen2", "text-generation"],
        size_bytes=15_231_271_888,
        size_gb=15.23,
        pipeline_tag="text-generation",
        library_name="transformers",
    )

    id: str
    architecture: str | None
    vllm_compatible: bool
    task_type: str | None = Field(
        description="How vLLM serves it: text-generation, vision-language, embedding, pooling (a score or a class), "
        "speculative (a draft model, for use with another). Null when it does not."
    )
    downloads: int = Field(description="In the last 30 days.")
    likes: int
    tags: list[str]
    size_bytes: int | None
    size_gb: float | None
    pipeline_tag: str | None = Field(description="The task, in the hub's words.")
    library_name: str | None

    @classmethod
    def of(cls, model: HubModel, catalogue: Catalogue) -> Self:
        return cls(
            id=model.id,
            architecture=next(iter(model.architectures), None),
            vllm_compatible=catalogue.runs(model.architectures),
            task_type=catalogue.task_of(model.architectures, model.pipeline_tag),
            downloads=model.downloads,
            likes=model.likes,
            tags=list(model.tags),
            size_bytes=model.size_bytes,
            size_gb=None if model.size_bytes is None else round(model.size_bytes / 1e9, 2),
            pipeline_tag=model.pipeline_tag,
            library_name=model.library_name,
        )


class ModelOption(BaseModel):
    """One line of a list to choose from; `value` is what goes into `config.model`."""

    model_config = _example(label="Qwen/Qwen2.5-7B-Instruct (7.6B)", value="Qwen/Qwen2.5-7B-Instruct")

    label: str
    value: str

    @classmethod
    def of(cls, model_id: str, parameters: int | None) -> Self:
        return cls(label=model_id if parameters is None else f"{model_id} ({_counted(parameters)})", value=model_id)


def _counted(parameters: int) -> str:
    """7615616512 → "7.6B", 494032768 → "494M"."""
    if parameters >= 1e9:
        return f"{parameters / 1e9:.1f}B"
    return f"{max(1, round(parameters / 1e6))}M"


@router.get("/vllm/available-models", summary="Tell which architectures vLLM runs")
async def available_models(app: App) -> AvailableModels:
    """Needs no network: this is shipped with Sluicegate."""
    known = app.catalogue
    return AvailableModels(
        model_source=f"Hugging Face Hub ({app.settings.hub_endpoint})",
        vllm_version=known.vllm_version,
        supported_architectures=known.supported,
        notes=known.notes,
        examples={kind: [example.id for example in examples] for kind, examples in known.examples.items()},
        how_to_find_models=known.how_to_find_models,
        resource_guidelines=known.resource_guidelines,
    )


@router.get("/vllm/search-models", summary="Search the Hugging Face Hub for models")
async def search_models(
    app: App,
    query: Annotated[str, Query(max_length=200, description="A part of the model's name.", examples=["qwen"])] = "",
    architecture: Annotated[
        str | None,
        Query(
            description="Only models of this architecture, among the first 500 that the rest finds.",
            examples=["Qwen2ForCausalLM"],
        ),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    sort_by: Annotated[SortBy, Query(description="The highest, or the latest, comes first.")] = "downloads",
) -> FoundModels:
    """The answer is kept for an hour. Without a network it is a 503 that says so."""
    if architecture is not None:
        app.catalogue.check(architecture)
    found = await app.hub.search(query.strip(), architecture=architecture, limit=limit, sort_by=sort_by)
    return FoundModels(models=[FoundModel.of(model, app.catalogue) for model in found], total=len(found))


@router.get("/vllm/model-info/{model_id:path}", summary="Show a model of the Hugging Face Hub")
async def model_info(
    app: App, model_id: Annotated[str, Path(description="`owner/name`", examples=["Qwen/Qwen2.5-7B-Instruct"])]
) -> ModelInfo:
    """Its architecture, whether vLLM runs it, and how large it is. The slash may also be sent as %2F."""
    return ModelInfo.of(await app.hub.model(model_id), app.catalogue)


@router.get("/vllm/model-options", summary="List models to choose from")
async def list_model_options(app: App) -> list[ModelOption]:
    """The most downloaded ones of the hub that generate text and that vLLM runs; without a network a few known ones."""
    return [ModelOption.of(*option) for option in await model_options(app.hub, app.catalogue)]

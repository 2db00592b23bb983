"""The numbers of an engine that people look at, out of its metrics: pure."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Reading:
    label: str
    text: str


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _share(value: float) -> str:
    return f"{value * 100:.0f} %"


# Which samples are which number: of vLLM, SGLang and llama.cpp. Replicas are summed, shares averaged.
_SOUGHT: tuple[tuple[str, tuple[str, ...], Callable[[float], str]], ...] = (
    ("Requests running", ("vllm:num_requests_running", "sglang:num_running_reqs", "llamacpp:requests_processing"),
     _whole),
    ("Requests waiting", ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "llamacpp:requests_deferred"), _whole),
    ("KV cache in use", ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage"), _share),
    ("Requests answered", ("vllm:request_success_total", "sglang:num_requests_total"), _whole),
    ("Tokens read", ("vllm:prompt_tokens_total", "sglang:prompt_tokens_total", "llamacpp:prompt_tokens_total"), _whole),
    ("Tokens written", ("vllm:generation_tokens_total", "sglang:generation_tokens_total",
     "llamacpp:tokens_predicted_total"), _whole),
)  # fmt: skip


def readings(text: str) -> list[Reading]:
    """What `GET /api/v1/services/{id}/metrics` has of them. Text that cannot be read has none."""
    values: dict[str, list[float]] = defaultdict(list)
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                values[sample.name].append(sample.value)
    except ValueError:
        return []
    found = []
    for label, names, shown in _SOUGHT:
        given = next((values[name] for name in names if name in values), None)
        if given is not None:
            total = sum(given)
            found.append(Reading(label, shown(total / len(given) if shown is _share else total)))
    return found

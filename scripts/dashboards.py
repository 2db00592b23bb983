"""Grafana's dashboards, written as JSON into examples/observability/grafana/dashboards: `make dashboards`.

What they show stands here, in a line or two for each panel. `$service` and `$model` are choices at the top of a
dashboard, `$__rate_interval` and `$__range` are Grafana's own.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.grafana import Choice, Dashboard, Panel, rendered

FOLDER = Path(__file__).parents[1] / "examples" / "observability" / "grafana" / "dashboards"


def stat(title: str, expression: str, unit: str = "short", words: str = "", width: int = 4) -> Panel:
    return Panel(title, ((expression, ""),), unit, "stat", words, width, 4)


def quantiles(metric: str, by: str, where: str = "", these: Sequence[float] = (0.5, 0.95, 0.99)) -> Iterator[str]:
    for quantile in these:
        yield f"histogram_quantile({quantile}, sum by ({by}) (rate({metric}_bucket{where}[$__rate_interval])))"


def spread(metric: str, where: str = "") -> tuple[tuple[str, str], ...]:
    """The middle, and what one in twenty and one in a hundred exceed."""
    return tuple(zip(quantiles(metric, "le", where), ("p50", "p95", "p99"), strict=True))


STATUSES = (
    (0, "pending", "yellow"), (1, "configuring", "blue"), (2, "running", "green"), (3, "completed", "text"),
    (4, "failed", "red"), (5, "cancelled", "text"), (6, "unknown", "orange"),
)  # fmt: skip
ANSWERS = ((0, "does not answer", "red"), (1, "answers", "green"))
_OF = '{service_id=~"$service"}'
_OF_MODEL = '{model=~"$model"}'

SERVICES = Dashboard(
    "sluicegate-services",
    "Sluicegate: services",
    "What runs, what waits, what has failed and why.",
    (
        stat("Running", 'sum(sluice_services{status="running"})'),
        stat("Loading", 'sum(sluice_services{status="configuring"})', words="They have their nodes; the engine loads."),
        stat("In the queue", 'sum(sluice_services{status="pending"})'),
        stat("Failed within a day", "sum(increase(sluice_service_failures_total[24h]))"),
        stat("Engines that answer", "sum(sluice_replicas_ready)"),
        stat("squeue last answered", "max(sluice_scheduler_answer_age_seconds)", "s"),
        Panel(
            "Services that have not ended",
            (('sum by (status) (sluice_services{status=~"pending|configuring|running|suspended"})', "{{status}}"),),
            stacked=True,
        ),
        Panel(
            "Jobs in the scheduler's words",
            (('sum by (state) (sluice_jobs{state=~"PENDING|CONFIGURING|RUNNING|SUSPENDED|COMPLETING"})', "{{state}}"),),
            stacked=True,
        ),
        Panel(
            "Status of each service",
            (("max by (service_id, recipe_name, model) (service_status_info)", "{{service_id}} {{model}}"),),
            kind="state-timeline",
            names=STATUSES,
        ),
        Panel(
            "Requests under way, by service",
            (("sum by (service_id) (sluice_service_requests_in_flight)", "{{service_id}}"),),
            stacked=True,
        ),
        Panel(
            "Failures by what caused them",
            (("sum by (rule) (increase(sluice_service_failures_total[$__rate_interval])) > 0", "{{rule}}"),),
            words="The rules are those of docs/troubleshooting.md.",
        ),
        Panel(
            "The watcher and the scheduler",
            (
                ("max(sluice_scheduler_answer_age_seconds)", "since squeue answered"),
                ("max(sluice_watcher_lag_seconds)", "since the watcher's last turn"),
                ("max(sluice_watcher_turn_seconds)", "how long that turn took"),
            ),
            "s",
        ),
    ),
)

REPLICAS = Dashboard(
    "sluicegate-replicas",
    "Sluicegate: replicas",
    "How requests are shared among the engines of a service.",
    (
        Panel(
            "Which engines answer",
            ((f"max by (service_id, replica_id) (sluice_replica_ready{_OF})", "{{replica_id}}"),),
            kind="state-timeline",
            names=ANSWERS,
            width=24,
        ),
        Panel(
            "Requests at each engine, by the orchestrator",
            ((f"sum by (replica_id) (sluice_replica_requests_in_flight{_OF})", "{{replica_id}}"),),
        ),
        Panel(
            "Requests in each engine, by the engine",
            (
                (
                    f"sum by (service_id, replica_id) (vllm:num_requests_running{_OF})",
                    "{{service_id}} {{replica_id}} runs",
                ),
                (
                    f"sum by (service_id, replica_id) (vllm:num_requests_waiting{_OF})",
                    "{{service_id}} {{replica_id}} waits",
                ),
            ),
        ),
        Panel(
            "Tokens a second, by engine",
            (
                (
                    f"sum by (service_id, replica_id) (rate(vllm:generation_tokens_total{_OF}[$__rate_interval]))",
                    "{{service_id}} {{replica_id}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Engines that give metrics",
            ((f"max by (service_id, replica_id) (sluice_scrape_ok{_OF})", "{{replica_id}}"),),
            kind="state-timeline",
            names=((0, "none", "orange"), (1, "some", "green")),
        ),
    ),
    (Choice("service", "Service", "sluice_replica_ready", "service_id"),),
)

ENGINES = Dashboard(
    "sluicegate-engines",
    "Sluicegate: engines (vLLM)",
    "vLLM's own metrics, by model.",
    (
        Panel("Time to the first token", spread("vllm:time_to_first_token_seconds", _OF_MODEL), "s"),
        Panel("Between two tokens", spread("vllm:inter_token_latency_seconds", _OF_MODEL), "s"),
        Panel(
            "Tokens a second",
            (
                (
                    f"sum by (model) (rate(vllm:generation_tokens_total{_OF_MODEL}[$__rate_interval]))",
                    "{{model}} written",
                ),
                (f"sum by (model) (rate(vllm:prompt_tokens_total{_OF_MODEL}[$__rate_interval]))", "{{model}} read"),
            ),
        ),
        Panel("A whole request", spread("vllm:e2e_request_latency_seconds", _OF_MODEL), "s"),
        Panel(
            "Requests in the engines",
            (
                (f"sum by (model) (vllm:num_requests_running{_OF_MODEL})", "{{model}} run"),
                (f"sum by (model) (vllm:num_requests_waiting{_OF_MODEL})", "{{model}} wait"),
            ),
        ),
        Panel("Waiting inside the engine", spread("vllm:request_queue_time_seconds", _OF_MODEL), "s"),
        Panel(
            "KV cache in use",
            ((f"max by (model, replica_id) (vllm:kv_cache_usage_perc{_OF_MODEL})", "{{model}} {{replica_id}}"),),
            "percentunit",
            most=1,
            words="At 100 % requests are put back into the queue.",
        ),
        Panel(
            "Prompts found in the prefix cache",
            (
                (
                    f"sum by (model) (rate(vllm:prefix_cache_hits_total{_OF_MODEL}[$__rate_interval]))"
                    f" / sum by (model) (rate(vllm:prefix_cache_queries_total{_OF_MODEL}[$__rate_interval]))",
                    "{{model}}",
                ),
            ),
            "percentunit",
            most=1,
            words="In tokens. `config.routing: prefix` raises it where a service has several replicas.",
        ),
        Panel(
            "Requests a second by how they ended",
            (
                (
                    f"sum by (finished_reason) (rate(vllm:request_success_total{_OF_MODEL}[$__rate_interval]))",
                    "{{finished_reason}}",
                ),
            ),
            "reqps",
            stacked=True,
        ),
        Panel(
            "Requests put back for want of cache",
            ((f"sum by (model) (rate(vllm:num_preemptions_total{_OF_MODEL}[$__rate_interval]))", "{{model}}"),),
        ),
    ),
    (Choice("model", "Model", "vllm:num_requests_running", "model"),),
)

GPU_HOURS = Dashboard(
    "sluicegate-gpu-hours",
    "Sluicegate: GPU hours",
    "Who holds GPUs, for which models, and how the budgets stand.",
    (
        stat("GPUs held now", "sum(sluice_service_gpus)", width=6),
        stat("GPU hours in this window", "sum(increase(sluice_gpu_seconds_total[$__range])) / 3600", "h", width=6),
        stat("GPU hours ever", "sum(sluice_gpu_seconds_total) / 3600", "h", width=6),
        stat(
            "Budget nearest to its end", "max(sluice_budget_used / (sluice_budget_limit > 0))", "percentunit", width=6
        ),
        Panel("GPUs held, by model", (("sum by (model) (sluice_service_gpus)", "{{model}}"),), stacked=True),
        Panel(
            "GPU hours an hour, by user",
            (("sum by (user) (rate(sluice_user_gpu_seconds_total[1h]))", "{{user}}"),),
            stacked=True,
            words="As many as the GPUs that are held.",
        ),
        Panel(
            "GPU hours in this window, by model",
            (("sort_desc(sum by (model) (increase(sluice_gpu_seconds_total[$__range]))) / 3600", "{{model}}"),),
            "h",
            "bargauge",
        ),
        Panel(
            "GPU hours in this window, by user",
            (("sort_desc(sum by (user) (increase(sluice_user_gpu_seconds_total[$__range]))) / 3600", "{{user}}"),),
            "h",
            "bargauge",
        ),
        Panel(
            "GPU hours of the services that have not ended",
            (("topk(20, sum by (service_id, model) (sluice_service_gpu_seconds)) / 3600", "{{service_id}} {{model}}"),),
            "h",
            "bargauge",
        ),
        Panel(
            "Budgets",
            (("max by (budget, unit) (sluice_budget_used / (sluice_budget_limit > 0))", "{{budget}} ({{unit}})"),),
            "percentunit",
            "gauge",
            most=1,
        ),
    ),
)

SLOTS = Dashboard(
    "sluicegate-slots",
    "Sluicegate: slots and queue",
    "Which model has which place, who waits for another, and the requests that are answered later.",
    (
        Panel(
            "The model of each slot",
            (("max by (slot, model) (sluice_slot_model_loaded)", "{{slot}}: {{model}}"),),
            kind="state-timeline",
            names=((0, "not loaded", "text"), (1, "loaded", "green")),
        ),
        Panel(
            "Phases of the slots", (("sum by (slot, phase) (sluice_slot_phase)", "{{slot}} {{phase}}"),), stacked=True
        ),
        Panel(
            "Requests that wait for a model",
            (("sum by (slot, model) (sluice_slot_requests_waiting)", "{{slot}}: {{model}}"),),
            stacked=True,
        ),
        Panel(
            "How long the first of them has waited",
            (("max by (slot, model) (sluice_slot_longest_wait_seconds)", "{{slot}}: {{model}}"),),
            "s",
        ),
        Panel("Switches an hour", (("sum by (slot) (increase(sluice_slot_switches_total[1h]))", "{{slot}}"),)),
        Panel(
            "From a model's start to its answer",
            (
                (
                    "sum by (slot) (sluice_slot_load_seconds_sum) / sum by (slot) (sluice_slot_load_seconds_count > 0)",
                    "{{slot}}",
                ),
            ),
            "s",
            words="The mean of all since the orchestrator began.",
        ),
        Panel(
            "Queued requests",
            (("sum by (state, model) (sluice_tasks)", "{{state}} {{model}}"),),
            stacked=True,
            words="Of `async: true` and of batches.",
        ),
        Panel("How long the first of them has waited", (("max(sluice_task_longest_wait_seconds)", "the first"),), "s"),
        Panel(
            "Lines of batches that have not ended",
            (("sum by (state) (sluice_batch_lines)", "{{state}}"),),
            stacked=True,
        ),
        Panel(
            "Queued requests answered a second",
            (("sum by (state) (rate(sluice_tasks_ended_total[$__rate_interval]))", "{{state}}"),),
            "reqps",
        ),
    ),
)

GATEWAY = Dashboard(
    "sluicegate-gateway",
    "Sluicegate: gateway and link",
    "What clients see, and the connection to the cluster.",
    (
        stat("Requests a second", "sum(rate(sluice_gateway_requests_total[5m]))", "reqps", width=6),
        stat(
            "Errors",
            'sum(rate(sluice_gateway_requests_total{status=~"5.."}[5m]))'
            " / sum(rate(sluice_gateway_requests_total[5m]))",
            "percentunit",
            width=6,
        ),
        stat("Waiting for the link", "sum(sluice_gateway_requests_waiting)", width=6),
        stat("Reconnects within a day", "sum(increase(sluice_gateway_tunnel_reconnects_total[24h]))", width=6),
        Panel(
            "The link",
            (("max by (state) (sluice_gateway_tunnel)", "{{state}}"),),
            kind="state-timeline",
            names=((0, "", "transparent"), (1, "is", "green")),
        ),
        Panel(
            "Requests a second, by status",
            (("sum by (status) (rate(sluice_gateway_requests_total[$__rate_interval]))", "{{status}}"),),
            "reqps",
            stacked=True,
            words="499: the client left before its answer began.",
        ),
        Panel(
            "How long requests for models took",
            spread("sluice_gateway_request_seconds", '{kind="v1"}'),
            "s",
            words="To the last byte: of a stream that is the whole answer.",
        ),
        Panel(
            "How long the API took, by route",
            tuple(
                (f"topk(10, {one})", "{{route}}")
                for one in quantiles("sluice_request_seconds", "route, le", these=(0.95,))
            ),
            "s",
            words="What 95 of 100 requests needed at the orchestrator.",
        ),
        Panel(
            "Requests under way",
            (
                ("sum(sluice_gateway_requests_in_flight)", "gateway"),
                ("sum(sluice_requests_in_flight)", "orchestrator"),
            ),
        ),
        Panel(
            "CPU of the two processes",
            (
                (
                    'sum by (job) (rate(process_cpu_seconds_total{job=~"gateway|orchestrator"}[$__rate_interval]))',
                    "{{job}}",
                ),
            ),
            "percentunit",
        ),
        Panel(
            "Memory of the two processes",
            (('sum by (job) (process_resident_memory_bytes{job=~"gateway|orchestrator"})', "{{job}}"),),
            "bytes",
        ),
        Panel(
            "Open files of the two processes",
            (('sum by (job) (process_open_fds{job=~"gateway|orchestrator"})', "{{job}}"),),
        ),
    ),
)

ALL = (SERVICES, REPLICAS, ENGINES, GPU_HOURS, SLOTS, GATEWAY)


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for dashboard in ALL:
        (folder / f"{dashboard.uid}.json").write_text(rendered(dashboard), encoding="utf-8")


if __name__ == "__main__":
    write(FOLDER)

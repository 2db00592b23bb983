"""Why services fail: the shipped rules over what engines, Slurm and the Hub really print. Each file of tests/logs is
named after the rule that must find it."""

import re
import string
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import Plan, resolve
from orchestrator.diagnosis import MOST_LOG, Condition, Diagnosis, Failure, Rule, diagnose, read_rules
from orchestrator.models import JobState
from orchestrator.recipes import RecipeBook, builtin_recipes
from orchestrator.settings import Site

LOGS = sorted((Path(__file__).parent / "logs").glob("*.txt"))
RULES = read_rules()
BOOK = RecipeBook([builtin_recipes()])
FACTS = {"model", "engine", "memory", "gpu", "nodes", "time_limit", "account", "exit_code", "reason"}
STEPS = {"times", "plus", "minus", "append", "to", "half_of", "divisor_of", "share"}
FAILED = JobState.FAILED


def plan(config: dict[str, Any] | None = None, recipe: str = "vllm-single-node") -> Plan:
    return resolve(BOOK.find(recipe), config or {}, Site())


def diagnosed(failure: Failure, of: Plan | None = None, most_minutes: int = 10_000) -> Diagnosis:
    found = diagnose(RULES, failure, of or plan(), most_minutes=most_minutes)
    assert found is not None
    return found


def log(name: str) -> str:
    return (Path(__file__).parent / "logs" / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
def test_what_is_printed_is_recognised(path: Path) -> None:
    found = diagnosed(Failure(FAILED, "NonZeroExitCode", 1, path.read_text(encoding="utf-8")))
    assert found.name == path.stem.partition("--")[0], found
    assert found.sentence.count("\n") == 0 and "{" not in found.sentence


@pytest.mark.parametrize(
    ("state", "reason", "exit_code", "name"),
    [
        (JobState.OUT_OF_MEMORY, "OutOfMemory", 0, "host-memory"),
        (JobState.NODE_FAIL, "NodeFail", None, "node-failure"),
        (JobState.BOOT_FAIL, "", None, "node-failure"),
        (JobState.PREEMPTED, "", 0, "preempted"),
        (JobState.TIMEOUT, "TimeLimit", 0, "time-limit"),
        (JobState.DEADLINE, "", 0, "time-limit"),
        (JobState.CANCELLED, "", 0, "cancelled"),
        (JobState.LOST, "the scheduler no longer knows job 7", None, "lost"),
        (JobState.LAUNCH_FAILED, "", None, "launch-failed"),
        (FAILED, "JobLaunchFailure", None, "launch-failed"),
        (FAILED, "NonZeroExitCode", 137, "engine-killed"),
        (FAILED, "NonZeroExitCode", 139, "engine-crashed"),
        (FAILED, "NonZeroExitCode", 3, "unknown"),
        (
            FAILED,
            "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
            None,
            "bad-account",
        ),
        (FAILED, "sbatch: error: invalid partition specified: gpuu", None, "bad-partition"),
        (FAILED, "sbatch: error: Batch job submission failed: Invalid partition name specified", None, "bad-partition"),
        (FAILED, "sbatch: error: Batch job submission failed: Invalid qos specification", None, "bad-qos"),
        (
            FAILED,
            "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates "
            "accounting/QOS policy (job submit limit, user's size and/or time limits)",
            None,
            "limit-of-the-site",
        ),
        (
            FAILED,
            "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some "
            "limit)",
            None,
            "limit-of-the-site",
        ),
        (
            FAILED,
            "sbatch: error: Batch job submission failed: Requested node configuration is not available",
            None,
            "no-such-nodes",
        ),
    ],
)
def test_the_scheduler_s_word(state: JobState, reason: str, exit_code: int | None, name: str) -> None:
    assert diagnosed(Failure(state, reason, exit_code)).name == name


def test_the_scheduler_s_word_comes_before_what_the_engine_printed() -> None:
    failure = Failure(JobState.TIMEOUT, "TimeLimit", 0, log("gpu-memory--vllm"))
    assert diagnosed(failure).name == "time-limit"


def test_a_cause_comes_before_its_consequences_wherever_it_stands() -> None:
    consequence = "RuntimeError: Engine core initialization failed. See root cause above.\n"
    for cause in ("gpu-memory--vllm", "gated-model--no-token", "context-too-long--vllm-0.11"):
        for text in (consequence + log(cause), log(cause) + consequence):
            assert diagnosed(Failure(FAILED, log=text)).name == cause.partition("--")[0]


def test_nothing_is_said_of_what_has_not_failed() -> None:
    assert diagnose(RULES, Failure(JobState.RUNNING, log="INFO ready\n"), plan(), most_minutes=60) is None


@pytest.mark.parametrize(
    ("name", "config", "changes"),
    [
        ("gpu-memory--vllm", {}, {"gpu_memory_utilization": 0.8}),
        ("gpu-memory--vllm", {"gpu_memory_utilization": 0.55}, {"gpu_memory_utilization": 0.5}),
        ("gpu-memory--vllm", {"gpu_memory_utilization": 0.5}, {}),
        ("gpu-memory--vllm", {"gpu_memory_utilization": 0.3}, {}),
        ("gpu-memory-taken--vllm-0.9", {}, {"gpu_memory_utilization": 0.87}),
        ("gpu-memory-taken--vllm-0.16", {}, {"gpu_memory_utilization": 0.11}),
        ("weights-fill-the-gpu--vllm", {}, {"gpu_memory_utilization": 0.95}),
        ("weights-fill-the-gpu--vllm", {"gpu_memory_utilization": 0.97}, {}),
        ("kv-cache-too-small--vllm-0.10", {}, {"max_model_len": 114432}),
        ("kv-cache-too-small--vllm-0.19", {}, {"max_model_len": 810208}),
        ("kv-cache-too-small-for-any--vllm-0.6", {}, {"max_model_len": 14500}),
        ("context-too-long--vllm-0.11", {}, {"max_model_len": 32768}),
        ("context-too-long--vllm-0.4", {}, {"max_model_len": 8192}),
        ("heads-not-divisible--vllm", {}, {"tensor_parallel_size": 7}),
        ("bfloat16-unsupported--t4", {"vllm_args": ["-x"]}, {"vllm_args": ["-x", "--dtype", "half"]}),
        ("bfloat16-unsupported--t4", {"vllm_args": "--dtype half"}, {}),
        ("port-taken--uvicorn", {}, {"replica_port": 9001}),
        ("host-memory--slurm", {"memory": "48G"}, {"memory": "96G"}),
        ("host-memory--slurm", {"memory": "64T"}, {}),
        ("time-limit--slurm", {}, {"time_limit": 30}),
        ("time-limit--slurm", {"time_limit": 60}, {"time_limit": 100}),
        ("time-limit--slurm", {"time_limit": 100}, {}),
        ("gated-model--no-token", {}, {}),
    ],
)
def test_the_change_goes_by_what_the_failed_run_had(name: str, config: dict[str, Any], changes: dict[str, Any]) -> None:
    found = diagnosed(Failure(FAILED, log=log(name)), plan(config), most_minutes=100)
    assert found.changes == changes
    assert plan(config | changes) != plan(config) or not changes


def test_other_recipes_are_changed_in_what_they_have() -> None:
    sglang, llamacpp = plan(recipe="sglang-single-node"), plan(recipe="llamacpp-cpu")
    few = Failure(FAILED, log=log("static-memory-too-small--sglang"))
    assert diagnosed(few, sglang).changes == {"gpu_memory_utilization": 0.92}
    memory = Failure(FAILED, log=log("gpu-memory--vllm"))
    assert diagnosed(memory, sglang).changes == {"gpu_memory_utilization": 0.77}
    assert diagnosed(memory, llamacpp).changes == {}
    port = Failure(FAILED, log=log("port-taken--llamacpp"))
    assert diagnosed(port, plan(recipe="vllm-replicas")).changes == {"replica_port": 9001}


def test_the_last_start_of_an_engine_counts() -> None:
    first = log("kv-cache-too-small--vllm-0.10")
    found = diagnosed(Failure(FAILED, log=first + first.replace("114432", "90000")))
    assert found.changes == {"max_model_len": 90000}


def test_what_a_job_has_written_is_shown_short_on_one_line_and_without_secrets() -> None:
    failure = Failure(FAILED, log="ValueError: token=hf_abcdefghijklmnopqrstuvwx \x1b[31m" + "x" * 5000)
    found = diagnosed(failure)
    assert (found.name, "hf_abc" in found.sentence, "\x1b" in found.sentence) == ("error-of-the-engine", False, False)
    assert len(found.sentence) < 400


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_is_whole(rule: Rule) -> None:
    """Each of its conditions has the groups of its words, and its patterns have a bound and begin with plain text."""
    used = {
        field for text in (rule.sentence, rule.advice) for _, field, _, _ in string.Formatter().parse(text) if field
    }
    for change in rule.changes:
        assert len(STEPS & change.model_fields_set) == 1, change
        named = [change.to, change.half_of, change.divisor_of, change.below, *(change.share or ())]
        used |= {name for name in named if name}
    for condition in rule.when:
        patterns = [pattern for pattern in (condition.log, condition.reason) if pattern]
        groups = {name for pattern in patterns for name in pattern.groupindex}
        assert used <= FACTS | groups, (condition, used)
        for pattern in patterns:
            plain = re.sub(r"\\.|\[[^]]*\]|`", "", pattern.pattern)
            assert "*" not in plain and "+" not in plain, pattern
            assert re.match(r"[\w ']{3}|QOS|[(]", pattern.pattern), pattern
    assert rule.source


def test_the_names_are_unique_and_the_documents_list_all_of_them() -> None:
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    page = (Path(__file__).parents[1] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    listed = re.findall(r"^### (\S+)\n\n(.+)\n\n(.+)$", page, re.MULTILINE)
    assert listed == [(rule.name, rule.sentence, rule.advice.replace("{{", "{").replace("}}", "}")) for rule in RULES]


def test_every_rule_has_an_example() -> None:
    of_logs = {path.stem.partition("--")[0] for path in LOGS}
    of_the_scheduler = {"host-memory", "node-failure", "preempted", "time-limit", "cancelled", "lost", "launch-failed"}
    of_sbatch = {"bad-account", "bad-partition", "bad-qos", "limit-of-the-site", "no-such-nodes"}
    assert {rule.name for rule in RULES} == of_logs | of_the_scheduler | of_sbatch


def test_a_condition_without_anything_is_refused() -> None:
    with pytest.raises(ValueError, match="would always hold"):
        Condition()


PATTERNS = [condition.log for rule in RULES for condition in rule.when if condition.log]


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.pattern[:40])
def test_the_time_is_bounded_whatever_a_job_writes(pattern: re.Pattern[str]) -> None:
    """Also where each place in the log looks like the beginning of something."""
    begins = "".join(re.findall(r"\\?([^\\])", re.split(r"\(\?|\[|\\d|\\s|\{|\\n", pattern.pattern)[0]))
    filled = begins * (MOST_LOG // len(begins)) + "1" * 1000
    began = time.process_time()
    found = diagnose(RULES, Failure(JobState.RUNNING, log=filled), plan(), most_minutes=60)
    assert list(pattern.finditer(filled)) == [] or found
    assert time.process_time() - began < 3

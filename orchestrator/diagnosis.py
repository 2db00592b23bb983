"""Why a service failed, in one sentence, and what to change: pure, but for the rules in data/diagnoses.yaml.

The log is what a job has written, so nothing of it is trusted: patterns have bounds, and what is shown of it is short
and without secrets.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from orchestrator.catalogue import DATA
from orchestrator.confidential import redacted
from orchestrator.config import Plan
from orchestrator.models import JobState
from orchestrator.recipes import Value

MOST_LOG = 256 * 1024  # bytes of a log that are looked at
_LARGEST_MEMORY = {"M": 64 * 1024 * 1024, "G": 64 * 1024, "T": 64, "K": 64 * 1024 * 1024 * 1024}
# The recipes' parameters behind the names of `config` that a change may set.
_PARAMETERS = {
    "gpu_memory_utilization": ("VLLM_GPU_MEMORY_UTILIZATION", "SGLANG_MEM_FRACTION_STATIC"),
    "max_model_len": ("VLLM_MAX_MODEL_LEN", "SGLANG_CONTEXT_LENGTH", "LLAMACPP_CONTEXT", "OLLAMA_CONTEXT_LENGTH"),
    "tensor_parallel_size": ("VLLM_TENSOR_PARALLEL_SIZE", "SGLANG_TENSOR_PARALLEL_SIZE"),
    "replica_port": ("VLLM_PORT", "SGLANG_PORT", "LLAMACPP_PORT", "OLLAMA_PORT", "QDRANT_PORT", "base_port"),
    "vllm_args": ("VLLM_EXTRA_ARGS",),
}


class Diagnosis(BaseModel):
    """Why a service failed. `changes` is a part of a `config` with which it may run; {} where nothing can be said."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="Of the rule, as docs/troubleshooting.md lists them.", examples=["gpu-memory"])
    sentence: str
    advice: str
    changes: dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """What is known of the end. `state` and `reason` in the scheduler's words; `log` is the end of the output."""

    state: JobState
    reason: str = ""
    exit_code: int | None = None
    log: str = ""


class Condition(BaseModel):
    """All that is named must hold. `log` and `reason` are looked for anywhere; the last place in the log counts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    state: tuple[JobState, ...] = ()
    exit_code: tuple[int, ...] = ()
    reason: re.Pattern[str] | None = None
    log: re.Pattern[str] | None = None

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not (self.state or self.exit_code or self.reason or self.log):
            raise ValueError("a condition without anything in it would always hold")
        return self

    def holds(self, failure: Failure) -> dict[str, str] | None:
        """The groups of its patterns, None when it does not hold."""
        if (self.state and failure.state not in self.state) or (
            self.exit_code and failure.exit_code not in self.exit_code
        ):
            return None
        found: dict[str, str] = {}
        for pattern, text in ((self.reason, failure.reason), (self.log, failure.log)):
            if pattern is None:
                continue
            match = _last(pattern, text)
            if match is None:
                return None
            found |= {name: value or "" for name, value in match.groupdict().items()}
        return found


class Change(BaseModel):
    """One value of a `config`: `key` is its name there. Exactly one step says how it is found; strings name groups.

    times, plus, minus, append: from the value that the failed run had (`from` where it had none). to, half_of: the
    number itself. divisor_of: the largest that divides it and is smaller than `below`. share: a part of a whole.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    key: str
    times: int | None = None
    plus: float | None = None
    minus: float | None = None
    append: list[str] | None = None
    to: str | None = None
    half_of: str | None = None
    divisor_of: str | None = None
    below: str | None = None
    share: tuple[str, str] | None = None
    least: float = 0
    most: float = float("inf")
    start: float | None = Field(default=None, alias="from")


class Rule(BaseModel):
    """One cause: see the head of data/diagnoses.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    source: str
    when: tuple[Condition, ...] = Field(min_length=1)
    sentence: str
    advice: str
    changes: tuple[Change, ...] = ()


def read_rules() -> tuple[Rule, ...]:
    """The shipped rules, in their order."""
    known = yaml.safe_load((DATA / "diagnoses.yaml").read_text(encoding="utf-8"))
    return tuple(Rule.model_validate(rule) for rule in known)


def diagnose(rules: Sequence[Rule], failure: Failure, plan: Plan, *, most_minutes: int) -> Diagnosis | None:
    """What the first rule that holds says, None when none does. `most_minutes`: the site's longest time limit."""
    for rule in rules:
        for condition in rule.when:
            if (found := condition.holds(failure)) is not None:
                return _said(rule, found, failure, plan, most_minutes)
    return None


def _said(rule: Rule, found: Mapping[str, str], failure: Failure, plan: Plan, most_minutes: int) -> Diagnosis:
    words = {**_facts(failure, plan), **found}
    new = {change.key: _new(change, found, plan, most_minutes) for change in rule.changes}
    return Diagnosis(
        name=rule.name,
        sentence=_shown(rule.sentence.format_map(words)),
        advice=_shown(rule.advice.format_map(words)),
        changes={key: value for key, value in new.items() if value is not None},
    )


def _facts(failure: Failure, plan: Plan) -> dict[str, str]:
    resources = plan.resources
    return {
        "model": plan.model or "that was asked for",
        "engine": plan.engine,
        "memory": resources.memory,
        "gpu": str(resources.gpu),
        "nodes": str(resources.nodes),
        "time_limit": str(resources.time_limit),
        "account": plan.account or "of [site]",
        "exit_code": "unknown" if failure.exit_code is None else str(failure.exit_code),
        "reason": failure.reason,
    }


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """Of an engine that was started several times the last word counts."""
    match = None
    for match in pattern.finditer(text):  # noqa: B007 - the last one is wanted
        pass
    return match


def _shown(text: str) -> str:
    """On one line, and short."""
    return redacted("".join(c if c.isprintable() else " " for c in text))[:1000]


def _new(change: Change, found: Mapping[str, str], plan: Plan, most_minutes: int) -> Any:
    """The new value, None where there is none that would be another, or where the recipe has no such setting."""
    if change.key == "memory":
        return _memory(plan.resources.memory, change.times or 1)
    if change.key == "time_limit":
        minutes = min(plan.resources.time_limit * (change.times or 1), most_minutes)
        return minutes if minutes > plan.resources.time_limit else None
    there = [name for name in _PARAMETERS[change.key] if name in plan.parameters]
    if not there:
        return None
    value = plan.parameters[there[0]]
    if change.append is not None:
        words = value if isinstance(value, list) else []
        return None if set(change.append) <= set(words) else [*words, *change.append]
    return _number(change, found, value)


def _memory(memory: str, times: int) -> str | None:
    number, unit = int(memory[:-1]) * times, memory[-1]
    return f"{number}{unit}" if number <= _LARGEST_MEMORY[unit] else None


def _number(change: Change, found: Mapping[str, str], value: Value) -> int | float | None:
    if change.to is not None:
        return int(found[change.to])
    if change.half_of is not None:
        return int(found[change.half_of]) // 2 or None
    if change.divisor_of is not None:
        return _divisor(int(found[change.divisor_of]), int(found[change.below or ""]))
    if change.share is not None:
        return _share(*(float(found[name]) for name in change.share))
    now = change.start if not isinstance(value, int | float) else value
    if now is None:
        return None
    moved = now + (change.plus or 0) - (change.minus or 0)
    bounded = round(max(change.least, min(change.most, moved)), 2)
    # At its bound already, or beyond: nothing is gained.
    if (bounded - now) * (moved - now) <= 0:
        return None
    return int(bounded) if isinstance(value, int) else bounded


def _divisor(number: int, below: int) -> int | None:
    return next((n for n in range(min(below, 65) - 1, 0, -1) if number % n == 0), None)


def _share(part: float, whole: float) -> float | None:
    """A little less than what was free, in hundredths."""
    share = int((part / whole - 0.02) * 100) / 100 if whole else 0
    return share if share >= 0.1 else None

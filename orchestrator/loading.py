"""How far an engine is with loading, read in the end of what it has written: pure.

Engines say so in lines for people, which change from version to version: what is not known is not guessed, and a line
that is not understood is passed over. Patterns have bounds, since a job may write what it likes.
"""

import re
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, Field

Phase = Literal["starting", "downloading", "loading", "compiling", "warming up", "serving"]

MOST_LOG = 16 * 1024  # bytes of each output that are looked at
_MOST_TEXT = 160  # characters that are shown of a line


class Loading(BaseModel):
    """`percent` is the engine's own, of this phase; null where it gives none. `text` is its line, or what it means."""

    phase: Phase
    percent: float | None = Field(default=None, ge=0, le=100)
    text: str


@dataclass(frozen=True)
class Sign:
    """A line that tells of a phase. Groups of the pattern: `text`, which is shown, `percent`, `done` and `of`; `dots`,
    of which each is a percent."""

    phase: Phase
    pattern: re.Pattern[str]


def _signs(*pairs: tuple[Phase, str]) -> tuple[Sign, ...]:
    return tuple(Sign(phase, re.compile(pattern)) for phase, pattern in pairs)


_BAR = r": +(?P<percent>[0-9]{1,3})%"  # of tqdm
_SIGNS = _signs(
    # vLLM, since 0.6: bars on stderr, lines of its logger on stdout.
    (
        "loading",
        r"(?P<text>(?:Multi-thread l|L)oading (?:safetensors|pt|np_cache|gguf)[a-z_ ()]{0,40} shards(?: \(eager\))?)"
        + _BAR + r" Completed \| (?P<done>[0-9]{1,5})/(?P<of>[0-9]{1,5})",
    ),
    ("loading", r"(?P<text>Starting to load model \S{1,200}?)\.\.\."),
    ("downloading", r"(?P<text>Time spent downloading weights for .{1,120})"),
    ("loading", r"(?P<text>Loading weights took [0-9.]{1,12} seconds)"),
    ("loading", r"(?P<text>Model loading took [0-9.]{1,12} GiB)"),
    ("compiling", r"(?P<text>Dynamo bytecode transform time: [0-9.]{1,12} s)"),
    ("compiling", r"(?P<text>Cache the graph|Compiling a graph|torch\.compile (?:takes|took) [0-9.]{1,12} s)"),
    ("warming up", r"(?P<text>(?:Available KV cache memory|[GC]PU KV cache size): [0-9.,]{1,20} \w{1,10})"),
    ("warming up", r"(?P<text>Warming up model for the compilation)"),
    ("warming up", r"(?P<text>Capturing CUDA graphs?(?: shapes| \([^)]{1,60}\))?)" + _BAR),
    ("warming up", r"(?P<text>Graph capturing finished in [0-9.]{1,12} secs)"),
    ("warming up", r"(?P<text>init engine \([^)]{1,80}\) took [0-9.]{1,12} s)"),
    ("serving", r"(?P<text>Starting vLLM (?:API )?server)"),
    # SGLang.
    ("loading", r"(?P<text>Load weight (?:begin|end))"),
    ("warming up", r"(?P<text>KV Cache is allocated|Capture cuda graph (?:begin|end))"),
    ("warming up", r"(?P<text>Capturing batches \([^)]{1,80}\))" + _BAR),
    ("serving", r"(?P<text>The server is fired up and ready to roll)"),
    # llama.cpp: a dot is a hundredth of the tensors, and no line feed comes before all are there.
    ("loading", r"^(?P<dots>\.{1,100})\s*$"),
    ("loading", r"load_tensors: (?P<text>loading model tensors)"),
    ("warming up", r"(?P<text>warming up the model with an empty run)"),
    ("serving", r"main: (?P<text>model loaded)"),
    # huggingface_hub and Ollama: what is fetched.
    ("downloading", r"(?P<text>\S{1,120}\.(?:safetensors|gguf|bin))" + _BAR),
    ("downloading", r"(?P<text>Fetching [0-9]{1,5} files|Downloading bytes)" + _BAR),
    ("downloading", r"(?P<text>pulling [0-9a-f]{12})" + _BAR),
    ("serving", r"(?P<text>Application startup complete)"),
)  # fmt: skip
_ORDER: tuple[Phase, ...] = ("starting", "downloading", "loading", "compiling", "warming up", "serving")
# Where an engine begins anew in the same file, after a restart: what is before it is over.
_BEGINS = re.compile(
    r"sluicegate: job \S{1,100} on \S{1,100}: starting |vLLM API server version |non-default args: \{"
    r"|server_args=ServerArgs\(|^build: [0-9]|build_info"
)
_NOISE = re.compile(r"\x1b\[[0-9;?]{0,10}[A-Za-z]|^\([A-Za-z0-9_ =]{1,60}\) *")


_NEWLINES = re.compile(r"[\r\n]+")


def loading_of(*outputs: str) -> Loading | None:
    """What the ends of an engine's outputs say. Of two, whose lines have no common order, the one that is further is
    right. None where nothing is said."""
    found = [last for output in outputs if (last := _last(output)) is not None]
    return max(found, key=lambda one: (_ORDER.index(one.phase), one.percent is not None), default=None)


def _last(output: str) -> Loading | None:
    """A bar is written over and over with carriage returns: its last state counts."""
    lines = _NEWLINES.split(output)
    for line in reversed(lines):
        plain = _NOISE.sub("", line[-2000:])
        begins = _BEGINS.search(plain)  # behind a bar that has no line feed, at times
        if (found := _read(plain[begins.end() :] if begins else plain)) is not None:
            return found
        if begins:
            return Loading(phase="starting", text="the engine starts")
    return None


def _read(line: str) -> Loading | None:
    for sign in _SIGNS:
        if (match := sign.pattern.search(line)) is not None:
            return _told(sign.phase, match.groupdict())
    return None


def _told(phase: Phase, groups: dict[str, str | None]) -> Loading:
    percent = groups.get("percent")
    if dots := groups.get("dots"):
        return Loading(phase=phase, percent=len(dots), text="loading model tensors")
    text = (groups.get("text") or "").strip()[:_MOST_TEXT]
    of = f" {groups['done']}/{groups['of']}" if groups.get("of") else ""
    return Loading(phase=phase, percent=None if percent is None else min(100.0, float(percent)), text=f"{text}{of}")

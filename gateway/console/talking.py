"""`sluice prompt` and `sluice chat`."""

import json
import sys
from typing import Any

from gateway.client import ApiError, BrokenAnswer
from gateway.client.streams import words_of
from gateway.console.desk import NOT_FOUND, USAGE, Desk
from gateway.console.tables import plain
from gateway.shapes import JSON


def prompt(desk: Desk, service_id: str, text: str | None, options: JSON) -> int:
    """Without a text, or with `-`, it is read from stdin."""
    asked = sys.stdin.read() if text in (None, "-") else text
    if not asked:
        desk.say('sluice prompt: the text is empty; write it behind the id, as in sluice prompt 3652098 "Hello"')
        return USAGE
    answer = desk.client.prompt(service_id, asked, **options)
    desk.give_text(answer, answer["text"])
    return 0


def chat(desk: Desk, name: str | None, system: str | None, options: JSON) -> int:
    """A conversation on a terminal; otherwise one answer to what is on stdin. `name`: a model or a service."""
    models = {str(model["id"]) for model in desk.client.models()["data"]}
    if name is None and len(models) != 1:
        there = f"choose one of {', '.join(sorted(models))}" if models else "start one with `sluice run MODEL`"
        desk.say(f"sluice chat: {len(models)} models answer; {there}")
        return USAGE if models else NOT_FOUND
    model = _model(desk, name, models)
    messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    if not sys.stdin.isatty():
        asked = sys.stdin.read()
        _answer(desk, model, [*messages, {"role": "user", "content": asked}], options)
        return 0
    desk.say(f"{model}. Ctrl-D ends; Ctrl-C stops an answer.")
    while (asked := _line()) is not None:
        if asked.strip():
            _turn(desk, model, messages, asked, options)
    desk.write("\n")
    return 0


def _turn(desk: Desk, model: str, messages: list[dict[str, Any]], asked: str, options: JSON) -> None:
    """One question and its answer; a question that was refused is forgotten, so that the next one may be taken."""
    messages.append({"role": "user", "content": asked})
    try:
        said = _answer(desk, model, messages, options)
    except (ApiError, BrokenAnswer) as exc:
        messages.pop()
        desk.say(f"sluice chat: {exc}")
        return
    messages.append({"role": "assistant", "content": said})


def _answer(desk: Desk, model: str, messages: list[dict[str, Any]], options: JSON) -> str:
    """Write an answer as it comes, with --json as one chunk a line. What was said, also when Ctrl-C stopped it."""
    said: list[str] = []
    stream = desk.client.chat_chunks(model, messages, **options)
    try:
        for chunk in stream:
            said.append(words_of(chunk))
            _write(desk, chunk, said[-1])
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    if not desk.as_json:
        desk.write("\n")
    return "".join(said)


def _write(desk: Desk, chunk: JSON, words: str) -> None:
    if desk.as_json:
        desk.write(json.dumps(chunk, ensure_ascii=False) + "\n")
    else:
        desk.write(plain(words) if desk.out.is_terminal else words)


def _line() -> str | None:
    """What was typed; None at the end."""
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt):
        return None


def _model(desk: Desk, name: str | None, models: set[str]) -> str:
    """The model called `name`, else that of the service; without a name the only one. Raises ApiError."""
    if name is None:
        return next(iter(models))
    return name if name in models else desk.client.service(name)["model"] or name

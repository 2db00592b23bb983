"""What is looked at in a request for a model: BadRequest, or what any reader of JSON finds there."""

import json

from orchestrator.asked import Asked, look, without_async
from orchestrator.errors import BadRequest
from tests.fuzz.target import Target

_FORM = b"multipart/form-data; boundary=x"


def _run(data: bytes) -> None:
    form = look(_FORM, data)
    assert form.model is None or 0 <= len(form.model) <= 1000
    try:
        asked = look(b"application/json", data)
    except BadRequest as exc:
        assert str(exc)
        return
    asked.model is None or asked.model.encode()
    assert len(asked.prefix) <= 2048
    if asked.later is not None:
        _take_out(data)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return  # of what is not looked at not everything is checked
    _check(asked, content)


def _take_out(data: bytes) -> None:
    """Without that word the same is asked."""
    try:
        left = without_async(data)
    except BadRequest as exc:
        assert str(exc)
        return
    again, before = look(b"application/json", left), look(b"application/json", data)
    assert (again.later, again.model, again.stream) == (None, before.model, before.stream)


def _check(asked: Asked, content: object) -> None:
    assert isinstance(content, dict)
    assert asked.model == content.get("model")
    assert asked.stream == bool(content.get("stream"))
    assert asked.session == (content.get("prompt_cache_key") or "").encode()


TARGET = Target(
    _run,
    seeds=[
        b'{"model": "a/b", "messages": [{"role": "user", "content": "hi"}], "stream": true}',
        b'{"model": null, "prompt": "x", "stream": null, "prompt_cache_key": "k"}',
        b'{"async": true, "model": "a", "async": false, "n": 1.50, "\\u0061sync": null}',
        b'{"input": ["a", 1.5e3, {"b": null}], "model": "\\u00e9\\ud83d\\ude00"}',
        b'{"model": "\\ud800", "prompt_cache_key": "\\udc00"}',
        b'{"model": "a", "model": "b", "x": NaN}',
        b'{"x": ' + b"[" * 1500 + b"]" * 1500 + b"}",
        b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n--x\r\n'
        b'Content-Disposition: form-data; name="stream"\r\nX: y\r\n\r\nTrue\r\n--x--\r\n',
    ],
    words=[
        b'"model"', b'"stream"', b'"messages"', b'"prompt"', b'"input"', b'"prompt_cache_key"', b'"async"', b"null",
        b"true", b"NaN",
        b"\\ud800", b"\\u0000", b'name="model"', b'name="stream"', b"\r\n\r\n", b"1e999", b"\xff", b"[[", b"{}",
    ],
)  # fmt: skip

"""What is looked at in a request for a model: its name, whether the answer is streamed, and what it begins with.

Pure. Everything else in a body is the engine's business, and passes through as it came.
"""

import re

import msgspec

from orchestrator.errors import BadRequest, Invalid

_PREFIX = 2048  # bytes of a prompt that tell whether two begin alike
_WORDS = re.compile(rb'"(?:[^"\\]+|\\.)*"?|[\[\]{}]', re.DOTALL)  # strings, the last perhaps cut off, and brackets
_OF_A_USER = re.compile(rb'"role"\s*:\s*"user"')
_FORM_MODEL = re.compile(rb'name="model"[^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]{1,1000})\r\n')
_FORM_STREAM = re.compile(rb'name="stream"[^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n(?i:true)\r\n')


class Asked(msgspec.Struct, frozen=True):
    """`session` and `prefix` say which requests belong together: the same user's, or those that begin alike.

    `later`: what the body says of "async", which is for us; None where it says nothing.
    """

    model: str | None
    stream: bool = False
    session: bytes = b""
    prefix: bytes = b""
    later: bool | None = None


class _Body(msgspec.Struct):
    """A JSON body. What a prompt is made of stays as it is: `instructions` and `system` stand before the rest."""

    model: str | None = None
    stream: bool | None = None
    messages: msgspec.Raw = msgspec.Raw(b"")
    prompt: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")
    instructions: msgspec.Raw = msgspec.Raw(b"")
    system: msgspec.Raw = msgspec.Raw(b"")
    prompt_cache_key: str | None = None
    later: bool | msgspec.UnsetType | None = msgspec.field(name="async", default=msgspec.UNSET)


_decode = msgspec.json.Decoder(_Body).decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def look(content_type: bytes, body: bytes, session: bytes = b"") -> Asked:
    """`content_type` and `session` are headers. Raises BadRequest for a body that is neither JSON nor a form."""
    if content_type[:19].lower() == b"multipart/form-data":
        return _look_at_form(body, session)
    if not body:
        raise BadRequest("the request has no body; send a JSON object with the field 'model'")
    try:
        found = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadRequest(f"the body is not what an OpenAI endpoint takes: {exc}") from exc
    begin = bytes(memoryview(found.messages or found.prompt or found.input)[:_PREFIX])
    if found.instructions or found.system:
        begin = (bytes(memoryview(found.instructions or found.system)[:_PREFIX]) + begin)[:_PREFIX]
    later = None if found.later is msgspec.UNSET else bool(found.later)
    return Asked(found.model, bool(found.stream), session or (found.prompt_cache_key or "").encode(), begin, later)


def without_async(body: bytes) -> bytes:
    """A body that `look` has taken as engines get it. All other values stay as they were written. Raises BadRequest."""
    try:
        fields = _fields(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadRequest(f"the body has a name that cannot be read: {exc}") from exc
    return msgspec.json.encode({name: value for name, value in fields.items() if name != "async"})


def idempotency_key(given: str | None) -> str | None:
    """The value of an Idempotency-Key. Raises Invalid."""
    if given is not None and not re.fullmatch(r"[\x21-\x7e]{1,200}", given):
        raise Invalid("Idempotency-Key must have 1 to 200 visible characters without spaces, e.g. a UUID")
    return given


def opening(prefix: bytes) -> bytes:
    """What all turns of a conversation have in common: its prompt up to the end of the user's first message, if that is
    within what is looked at; else all of it. Called where it matters only: looking at each message takes a while."""
    depth = begin = 0
    for word in _WORDS.finditer(prefix):
        if word[0] in (b"[", b"{"):
            depth += 1
            if depth == 2:
                begin = word.start()
        elif word[0] in (b"]", b"}"):
            depth -= 1
            if depth == 1 and _OF_A_USER.search(prefix, begin, word.end()):
                return prefix[: word.end()]
    return prefix


def _look_at_form(body: bytes, session: bytes) -> Asked:
    """A file with fields, as for audio. The fields are short; the file may be long and is not read."""
    model = _FORM_MODEL.search(body)
    name = None if model is None else model[1].decode(errors="replace").strip()
    return Asked(name, _FORM_STREAM.search(body) is not None, session)

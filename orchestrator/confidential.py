"""What others may not see: known by the name that a value has, or by its look.

The one list of such names. Values of these names travel in a job's 0600 file; wherever a configuration is kept, shown
or logged there is `MASK` in their place.
"""

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"

_NAME = re.compile(
    r"(.*_)?(TOKEN|KEY|APIKEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|PAT|DSN|CONNECTION_STRING)"
    r"|AWS_.*|DATABASE_URL",
    re.IGNORECASE,
)
# The end of a name of this kind with its value behind it: in a query, in the environment, in JSON, in a header. None of
# these looks back or ahead without a bound: a text of others must not cost more than its length.
_WORD = r"(?:api[_-]?key|token|secret|passw(?:or)?d|passphrase)"
_VALUE = r"[^\s\"'&,;)}\]]{4,}"
_LOOKS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(rf"(?i)((?:{_WORD}|key)=[\"']?){_VALUE}"), rf"\1{MASK}"),
    (re.compile(rf"(?i)({_WORD}[\"']\s*:\s*[\"']){_VALUE}"), rf"\1{MASK}"),
    (re.compile(rf"(?i)\b((?:x-)?api-key\s*:\s*|authorization\s*:\s*(?:basic\s+)?)(?!bearer){_VALUE}"), rf"\1{MASK}"),
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}"), rf"\1{MASK}"),
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), f"hf_{MASK}"),
    (re.compile(r"\b(sk-|gh[pousr]_|github_pat_|glpat-|xox[abpr]-|AKIA)[\w-]{16,}"), rf"\1{MASK}"),
    (re.compile(r"://[^/\s:@]+:[^/\s@]+@"), f"://{MASK}@"),
)
_OURS = re.compile(r"\bsluice_[\w-]{16,}")  # a key of this gateway, or the name of a metric


def is_secret(name: str) -> bool:
    """Whether a variable or a key of this name holds what others may not see."""
    return _NAME.fullmatch(name) is not None


def masked(content: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without its secrets, at any depth."""
    return {name: MASK if is_secret(name) and value is not None else _within(value) for name, value in content.items()}


def _within(value: Any) -> Any:
    if isinstance(value, Mapping):
        return masked(value)
    return [_within(item) for item in value] if isinstance(value, list) else value


def redacted(text: str) -> str:
    """Text, such as an error's or a line of a log, without what looks like a secret in it."""
    for look, instead in _LOOKS:
        text = look.sub(instead, text)
    return _OURS.sub(_unless_words, text)


def _unless_words(found: re.Match[str]) -> str:
    """A key has digits or capitals; the name of a metric has neither."""
    words = found[0].replace("_", "")
    return found[0] if words.isalpha() and words.islower() else f"sluice_{MASK}"

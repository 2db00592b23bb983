"""Templates into text. Everything is escaped, and a name that is not given is an error."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from gateway.dashboard import words
from gateway.dashboard.static_files import static
from gateway.dashboard.story import kind
from orchestrator import __version__

if TYPE_CHECKING:
    from jinja2 import Environment

# No style element of htmx's own: the CSP forbids it. Errors are swapped in as well, since they are fragments too.
_HTMX = {"includeIndicatorCSS": False, "mode": "same-origin", "history": False, "defaultSwap": "outerMorph"}

May = Callable[[str, str], bool]


def render(template: str, may: May = lambda method, path: True, **context: Any) -> Markup:
    """`may`: whether the key in use may do what a method and a path of the API say."""
    return Markup(_environment().get_template(template).render(may=may, **context).strip())


@cache
def _environment() -> "Environment":
    # Imported here: 5 MB that a gateway without a browser does not need.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"static": static, "version": __version__, "htmx_config": json.dumps(_HTMX)}
    environment.filters |= {**words.FILTERS, "kind": kind}
    return environment

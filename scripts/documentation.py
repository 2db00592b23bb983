"""MkDocs' hook: what the site has beside docs/, and links that lead out of docs/ in the repository.

Pages are written to be read in the repository too, so their links are those of files; here they become the site's.
"""

import importlib.util
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"ARCHITECTURE.md": "architecture.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Pages of the site that stand at the root of the repository."""
OPENAPI = "openapi/server-openapi.json"
_LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
_OF_SWAGGER = ("swagger-ui-bundle.js", "swagger-ui.css")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, name in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    shipped = [path for path in (ROOT / "examples").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    for path in [*shipped, ROOT / OPENAPI]:
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for name in _OF_SWAGGER:
        files.append(File.generated(config, f"swagger/{name}", abs_src_path=str(_swagger() / name)))
    document = f"window.sluicegateDocument = {(ROOT / OPENAPI).read_text(encoding='utf-8')};"
    files.append(File.generated(config, "swagger/document.js", content=document))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    return within_site(markdown, page.file.src_uri)


def within_site(markdown: str, page: str) -> str:
    """A page with links that hold in the site. `page`: its name there."""
    folder = PurePosixPath(page).parent.as_posix() + "/" if page.startswith("examples/") else "docs/"
    base = "" if page in PAGES.values() else folder
    back = "../" * page.count("/")

    def moved(link: re.Match[str]) -> str:
        target = _normal(base + link[2]) if base else link[2]
        return f"{link[1]}{back}{_name(target)}{link[3]}"

    return _LINK.sub(moved, markdown)


def _normal(path: str) -> str:
    """Without its `..`; one that leads out of the repository stays as it is."""
    parts: list[str] = []
    for part in PurePosixPath(path).parts:
        if part == ".." and parts:
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)


def _name(path: str) -> str:
    """What a file of the repository is called in the site."""
    return PAGES.get(path) or ("index.md" if path == "README.md" else path.removeprefix("docs/"))


def _swagger() -> Path:
    """The files that the gateway's own /docs shows too."""
    spec = importlib.util.find_spec("fastapi_offline")
    assert spec is not None and spec.origin is not None, "fastapi-offline is one of our dependencies"
    return Path(spec.origin).parent / "static"

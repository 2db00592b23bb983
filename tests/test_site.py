"""The pages as a site: built strictly, and nothing in it leads or loads from elsewhere without being asked."""

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from scripts.documentation import PAGES, ROOT, within_site

pytestmark = pytest.mark.system


class Page(HTMLParser):
    """`loads`: what a browser fetches by itself; `leads`: where a click goes; `ids`: what can be led to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.leads: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a":
            self.leads += [given["href"]] if "href" in given else []
        else:
            self.loads += [given[name] for name in ("src", "href", "srcset", "data", "action") if name in given]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make docs` builds it. A warning of MkDocs is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [str(Path(sys.executable).with_name("mkdocs")), "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    # 404.html is shown at any depth, so its links are those of a server.
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def local(site: Path, page: Path, link: str) -> Iterator[tuple[Path, str]]:
    """The file and the anchor of a link within the site."""
    parts = urlsplit(link)
    if not parts.scheme and not parts.netloc:
        yield (page.parent / unquote(parts.path)).resolve() if parts.path else page, parts.fragment


def test_nothing_is_loaded_from_outside(pages: dict[Path, Page], site: Path) -> None:
    assert len(pages) > 30
    for path, page in pages.items():
        outside = [one for one in page.loads if urlsplit(one).scheme not in ("", "data") or urlsplit(one).netloc]
        assert outside == [], path
    for style in site.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import)\s*[\"']?(https?:|//)", style.read_text(encoding="utf-8"))
        assert found == [], style


def test_every_link_and_anchor_is_there(pages: dict[Path, Page], site: Path) -> None:
    for path, page in pages.items():
        for link in [*page.leads, *page.loads]:
            for target, anchor in local(site, path, link):
                assert target.is_file(), f"{path.name}: {link}: no such file"
                known = target not in pages or not anchor or anchor in pages[target].ids
                assert known, f"{path.name}: {link}: no such place"


def test_every_page_of_the_repository_is_in_the_site(pages: dict[Path, Page], site: Path) -> None:
    names = {path.name for path in (ROOT / "docs").glob("*.md")} | set(PAGES.values())
    assert {name.replace(".md", ".html") for name in names} <= {str(path.relative_to(site)) for path in pages}
    for menu in ("tutorial.html", "site-apptainer.html", "configuration.html", "architecture.html", "changelog.html"):
        assert menu in pages[site / "index.html"].leads


def test_the_reference_has_all_routes(site: Path) -> None:
    document = (site / "swagger" / "document.js").read_text(encoding="utf-8")
    assert document.startswith("window.sluicegateDocument = {") and '"/api/v1/services"' in document
    assert (site / "swagger" / "swagger-ui-bundle.js").stat().st_size > 1_000_000


@pytest.mark.parametrize(
    ("page", "link", "there"),
    [
        ("clients.md", "access.md#keys", "access.md#keys"),
        ("clients.md", "../examples/proxy/Caddyfile", "examples/proxy/Caddyfile"),
        ("index.md", "../ARCHITECTURE.md", "architecture.md"),
        ("index.md", "images/architecture.svg", "images/architecture.svg"),
        ("index.md", "https://example.org/docs/a.md", "https://example.org/docs/a.md"),
        ("index.md", "#here", "#here"),
        ("index.md", "../README.md#settings", "index.md#settings"),
        ("architecture.md", "docs/wire.md", "wire.md"),
        ("contributing.md", "CHANGELOG.md", "changelog.md"),
    ],
)
def test_links_of_files_become_those_of_the_site(page: str, link: str, there: str) -> None:
    assert within_site(f"See [it]({link}).", page) == f"See [it]({there})."


def test_the_settings_of_the_site_are_strict() -> None:
    text = re.sub(r"!!python/object\S*", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    settings = yaml.safe_load(text)
    assert settings["theme"]["font"] is False
    assert set(settings["validation"]["links"].values()) == {"warn"}

"""docs/configuration.md is that of the settings, and every setting says what it does."""

from typing import Literal

import pytest
from pydantic import BaseModel, Field

from gateway.settings import Settings as Gateway
from orchestrator.settings import Settings
from scripts.configuration import PAGE, SECTIONS, Section, Undescribed, descriptions, text


def test_the_page_is_that_of_the_settings() -> None:
    assert PAGE.read_text(encoding="utf-8") == text(), "run `make configuration`"


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title)
def test_every_setting_says_what_it_does(section: Section) -> None:
    for name, said in descriptions(section.model).items():
        assert said.endswith((".", ")")) and said[0] == said[0].upper(), f"{name}: {said}"


class Poor(BaseModel):
    told: Literal["a"] = "a"
    """What it does."""
    untold: int = Field(default=1, ge=0)


def test_a_setting_that_says_nothing_is_named() -> None:
    with pytest.raises(Undescribed, match=r"test_configuration.py: Poor.untold has no string below it"):
        descriptions(Poor)


def test_names_types_bounds_and_defaults() -> None:
    page = text()
    assert "| `GATEWAY_PORT`<br>`port` | whole number, at least 0, at most 65535 | 8001 | Its port;" in page
    assert "| `ORCHESTRATOR_HOME`<br>`home` | path | `~/.sluicegate` |" in page
    assert "| `GATEWAY_API_KEY`<br>`api_key` | text, secret | \N{EN DASH} |" in page
    assert "| `CONTROL_API_KEY`<br>`control_api_key` |" in page
    assert "| `runtime` | `none`, `apptainer`, `docker`, `podman` | `none` |" in page
    assert all(f"`GATEWAY_{name.upper()}`" in page for name in Gateway.model_fields)
    assert all(f"`ORCHESTRATOR_{name.upper()}`" in page for name in Settings.model_fields)

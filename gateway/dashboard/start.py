"""Start a service: a form made from a recipe's parameters, with the script that it would submit beside it."""

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.dashboard import service as service_page
from gateway.dashboard.asking import Asker, Refused, asker_of
from gateway.dashboard.forms import Form, amended, config_of, field_named, form_of, read_form
from gateway.dashboard.pages import Entry, Page
from gateway.dashboard.view import fragment, is_fragment, page, see_other


@dataclass(frozen=True)
class Filled:
    """What a form was filled in with."""

    form: Form
    body: dict[str, Any]
    token: str


async def choose(request: Request) -> Response:
    recipes = await asker_of(request).json("GET", "/api/v1/recipes")
    by_category = {name: list(part) for name, part in groupby(recipes, key=lambda recipe: recipe["category"])}
    return page(request, "recipes.html", by_category=by_category)


async def fill(request: Request) -> Response:
    """The form; with `?from=ID` filled in as that service was, and as its diagnosis wants it."""
    asker, like = asker_of(request), request.query_params.get("from")
    recipe = await _recipe(asker, request)
    form = form_of(recipe)
    if like:
        service = await asker.json("GET", f"/api/v1/services/{quote(like, safe=':')}")
        form = amended(form_of(recipe, service["config"]), (service["diagnosis"] or {}).get("changes", {}))
    token = secrets.token_hex(16)
    return page(request, "start.html", here="/ui/start", recipe=recipe, form=form, like=like, token=token)


async def script(request: Request) -> Response:
    """The script of what is filled in, or what is wrong with it and at which field."""
    recipe = await _recipe(asker_of(request), request)
    given = await read_form(request)
    form = form_of(recipe)
    try:
        body = {"recipe_name": recipe["path"], "config": config_of(form, given)}
        rendered = await asker_of(request).json("POST", "/api/v1/render", body)
    except Refused as exc:
        if exc.status not in (400, 422):
            raise
        field = field_named(form, exc.text)
        return fragment(request, "script.html", script="", config="", wrong=exc.text, field=field)
    config = json.dumps(body["config"], indent=2, ensure_ascii=False)
    return fragment(request, "script.html", script=rendered["script"], config=config, wrong="", field=None)


async def check(request: Request) -> Response:
    filled = await _filled(request)
    report = await asker_of(request).json("POST", "/api/v1/preflight", filled.body)
    return fragment(request, "verdicts.html", report=report)


async def start(request: Request) -> Response:
    filled = await _filled(request)
    headers = {"Idempotency-Key": filled.token}
    try:
        service = await asker_of(request).json("POST", "/api/v1/services", filled.body, headers=headers)
    except Refused as exc:
        if not is_fragment(request):
            raise
        # With another token: what the scheduler has refused once it would refuse for ever under the same one.
        about = {"text": exc.text, "token": secrets.token_hex(16)}
        return fragment(request, "start_problem.html", status=exc.status, **about)
    return see_other(request, service_page.address(service["id"]))


async def _recipe(asker: Asker, request: Request) -> dict[str, Any]:
    category, name = request.path_params["category"], request.path_params["name"]
    recipe: dict[str, Any] = await asker.json("GET", f"/api/v1/recipes/{quote(category)}/{quote(name)}")
    return recipe


async def _filled(request: Request) -> Filled:
    recipe = await _recipe(asker_of(request), request)
    given = await read_form(request)
    form = form_of(recipe)
    body = {"recipe_name": recipe["path"], "config": config_of(form, given)}
    return Filled(form, body, _token(given.get("token", ""), body))


def _token(of_page: str, body: Mapping[str, Any]) -> str:
    """One service of a button that is pressed twice, another one of a form that was changed between."""
    return f"form-{hashlib.sha256(json.dumps([of_page, body]).encode()).hexdigest()}"


_FORM = "/ui/start/{category}/{name}"

PAGE = Page(
    entries=(Entry("Start", "/ui/start", "start", needs=("POST", "/api/v1/services")),),
    routes=(
        Route("/ui/start", choose),
        Route(_FORM, fill),
        Route(_FORM, start, methods=["POST"]),
        Route(f"{_FORM}/script", script, methods=["POST"]),
        Route(f"{_FORM}/check", check, methods=["POST"]),
    ),
)

"""GET /recipes: what can be started, and what can be set."""

from typing import Any

from fastapi import APIRouter

from orchestrator.deps import App
from orchestrator.routes.strict import StrictRoute

router = APIRouter(tags=["recipes"], route_class=StrictRoute)


@router.get("/recipes", summary="List the recipes")
async def list_recipes(
    app: App, name: str | None = None, path: str | None = None
) -> list[dict[str, Any]] | dict[str, Any]:
    """All recipes, or with `name` or `path` the one that is called so."""
    wanted = name or path
    if wanted is not None:
        return app.recipes.find(wanted).public()
    return [recipe.public() for recipe in app.recipes.all()]


@router.get("/recipes/{name}", summary="Show a recipe by its name")
async def show_recipe(app: App, name: str) -> dict[str, Any]:
    return app.recipes.find(name).public()


@router.get("/recipes/{category}/{name}", summary="Show a recipe by its category and name")
async def show_recipe_of_category(app: App, category: str, name: str) -> dict[str, Any]:
    return app.recipes.find(f"{category}/{name}").public()

"""What all engines have done, added up."""

from datetime import datetime

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from orchestrator.deps import App
from orchestrator.routes.strict import StrictRoute
from orchestrator.usage import BOUNDS, Usage

router = APIRouter(tags=["metrics"], route_class=StrictRoute)


class FirstTokens(BaseModel):
    """`count` first tokens took no longer than `seconds`, and longer than the entry before. null: longer than all."""

    seconds: float | None
    count: int


class UsageShape(BaseModel):
    """Since this orchestrator looked at its engines first. `engines` have told theirs, `silent` have not; `as_of` is
    null before the first look."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "as_of": "2026-11-21T12:00:00Z",
                    "engines": 2,
                    "silent": 0,
                    "prompt_tokens": 182_340,
                    "generated_tokens": 96_512,
                    "first_tokens": [{"seconds": 0.1, "count": 412}, {"seconds": None, "count": 0}],
                }
            ]
        }
    )

    as_of: datetime | None
    engines: int
    silent: int
    prompt_tokens: int
    generated_tokens: int
    first_tokens: list[FirstTokens]


@router.get("/usage", summary="Show the tokens of all engines, and how long the first ones took")
async def show_usage(app: App) -> UsageShape:
    """By the engines' own metrics, which are read at most every five seconds, and only while somebody asks for this.
    The numbers only grow, until the orchestrator is started again: what happens in a time is the difference of two."""
    await app.usage.fresh()
    known = app.usage.answer or Usage()
    bounds = (*BOUNDS, None)
    return UsageShape(
        as_of=app.usage.answered_at,
        engines=known.engines,
        silent=known.silent,
        prompt_tokens=known.prompt_tokens,
        generated_tokens=known.generated_tokens,
        first_tokens=[FirstTokens(seconds=s, count=n) for s, n in zip(bounds, known.first_tokens, strict=True)],
    )

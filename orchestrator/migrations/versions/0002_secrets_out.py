"""No secret stays in what is kept of a service: its configuration, its plan, its events.

The values are not moved: the scripts of these jobs, in folders of their user alone, have them already.
"""

import sqlalchemy as sa
from alembic import op

from orchestrator.confidential import is_secret, masked

revision = "0002"
down_revision = "0001"

SERVICE = sa.table(
    "service", sa.column("submission_id", sa.String), sa.column("config", sa.JSON), sa.column("plan", sa.JSON)
)
EVENT = sa.table("event", sa.column("id", sa.Integer), sa.column("detail", sa.JSON))


def upgrade() -> None:
    database = op.get_bind()
    for identity, config, plan in database.execute(sa.select(SERVICE)).all():
        without = {"config": masked(config), "plan": _without(plan)}
        if without != {"config": config, "plan": plan}:
            database.execute(sa.update(SERVICE).where(SERVICE.c.submission_id == identity).values(without))
    for identity, detail in database.execute(sa.select(EVENT)).all():
        if masked(detail) != detail:
            database.execute(sa.update(EVENT).where(EVENT.c.id == identity).values(detail=masked(detail)))


def _without(plan: dict[str, object]) -> dict[str, object]:
    """A plan has the names of its secrets beside its environment."""
    environment = plan.get("environment")
    if not isinstance(environment, dict) or not any(map(is_secret, environment)):
        return plan
    kept = {name: value for name, value in environment.items() if not is_secret(name)}
    return {**plan, "environment": kept, "secrets": [name for name in environment if is_secret(name)]}


def downgrade() -> None:
    """What has been left out cannot come back, and the tables are the same."""

"""Who started a service, when it was last used, and the runs of a job before its requeues."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

JOB = sa.table(
    "job",
    sa.column("submission_id", sa.String),
    sa.column("started_at", sa.DateTime),
    sa.column("ended_at", sa.DateTime),
    sa.column("used_seconds", sa.Float),
)
OF_SERVICES = ("last_activity", "idle_since", "looked_at")


def upgrade() -> None:
    with op.batch_alter_table("service") as service:
        service.add_column(sa.Column("actor", sa.String(), nullable=False, server_default=""))
        service.create_index("ix_service_actor", ["actor"])
        for column in OF_SERVICES:
            service.add_column(sa.Column(column, sa.DateTime(), nullable=True))
    with op.batch_alter_table("job") as job:
        job.add_column(sa.Column("used_seconds", sa.Float(), nullable=False, server_default="0"))
        job.add_column(sa.Column("earlier_runs", sa.JSON(), nullable=False, server_default="[]"))
    database = op.get_bind()
    ended = sa.select(JOB).where(JOB.c.started_at.is_not(None), JOB.c.ended_at > JOB.c.started_at)
    for submission_id, started_at, ended_at, _ in database.execute(ended).all():
        seconds = {"used_seconds": (ended_at - started_at).total_seconds()}
        database.execute(sa.update(JOB).where(JOB.c.submission_id == submission_id).values(seconds))
    # Until now only the event knew.
    op.execute(
        "UPDATE service SET actor = COALESCE((SELECT actor FROM event WHERE event.subject = service.submission_id"
        " AND event.kind = 'service.created' ORDER BY event.id LIMIT 1), '')"
    )


def downgrade() -> None:
    with op.batch_alter_table("job") as job:
        job.drop_column("earlier_runs")
        job.drop_column("used_seconds")
    with op.batch_alter_table("service") as service:
        service.drop_index("ix_service_actor")
        for column in ("actor", *OF_SERVICES):
            service.drop_column(column)

"""Services, jobs and events."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "service",
        sa.Column("submission_id", sa.String(), primary_key=True),
        sa.Column("id", sa.String(), nullable=True, index=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("recipe_name", sa.String(), nullable=False, index=True),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False, index=True),
        sa.Column("idempotency_key", sa.String(), nullable=True, unique=True),
        sa.Column("cancelled_at", sa.DateTime(), nullable=True),
    )
    op.create_table(
        "job",
        sa.Column("submission_id", sa.String(), primary_key=True),
        sa.Column("service", sa.String(), sa.ForeignKey("service.submission_id"), nullable=False, index=True),
        sa.Column("scheduler", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False, unique=True),
        sa.Column("job_id", sa.String(), nullable=True, index=True),
        sa.Column("state", sa.String(32), nullable=False, index=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("nodes", sa.String(), nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("restarts", sa.Integer(), nullable=False),
        sa.Column("recorded_at", sa.DateTime(), nullable=False),
        sa.Column("seen_at", sa.DateTime(), nullable=True),
        sa.Column("submitted_at", sa.DateTime(), nullable=True),
        sa.Column("started_at", sa.DateTime(), nullable=True),
        sa.Column("ready_at", sa.DateTime(), nullable=True),
        sa.Column("ended_at", sa.DateTime(), nullable=True),
        sa.Column("ends_at", sa.DateTime(), nullable=True),
    )
    op.create_table(
        "event",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("at", sa.DateTime(), nullable=False, index=True),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False, index=True),
        sa.Column("subject", sa.String(), nullable=False, index=True),
        sa.Column("detail", sa.JSON(), nullable=False),
    )


def downgrade() -> None:
    for table in ("event", "job", "service"):
        op.drop_table(table)

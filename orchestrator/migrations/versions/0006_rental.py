"""Sessions of a rented machine, with what they cost."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "rental",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("instance_id", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(), nullable=False),
        sa.Column("seen_at", sa.DateTime(), nullable=False),
        sa.Column("active_at", sa.DateTime(), nullable=False),
        sa.Column("ended_at", sa.DateTime(), nullable=True),
        sa.Column("price", sa.Float(), nullable=False),
        sa.Column("cost", sa.Float(), nullable=False),
        sa.Column("stopping", sa.String(), nullable=False),
    )
    op.create_index("ix_rental_instance_id", "rental", ["instance_id"])
    still = sa.text("ended_at IS NULL")
    op.create_index(
        "uq_rental_open", "rental", ["instance_id"], unique=True, sqlite_where=still, postgresql_where=still
    )


def downgrade() -> None:
    op.drop_table("rental")

"""Jobs that follow jobs: which one of a service serves, which one takes over."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    with op.batch_alter_table("job") as job:
        job.add_column(sa.Column("replaces", sa.String(), nullable=True))
        job.add_column(sa.Column("attempt", sa.Integer(), nullable=False, server_default="1"))
        job.create_unique_constraint("uq_job_replaces_attempt", ["replaces", "attempt"])
    with op.batch_alter_table("service") as service:
        service.add_column(sa.Column("kept", sa.Boolean(), nullable=False, server_default=sa.false()))
        service.add_column(sa.Column("job", sa.String(), nullable=False, server_default=""))
        service.add_column(sa.Column("next_job", sa.String(), nullable=True))
        service.add_column(sa.Column("handovers", sa.Integer(), nullable=False, server_default="0"))
        service.create_index("ix_service_kept", ["kept"])
        service.create_index("ix_service_job", ["job"])
    # Until now a service had one job.
    op.execute("UPDATE service SET job = (SELECT submission_id FROM job WHERE job.service = service.submission_id)")


def downgrade() -> None:
    with op.batch_alter_table("service") as service:
        service.drop_index("ix_service_kept")
        service.drop_index("ix_service_job")
        for column in ("kept", "job", "next_job", "handovers"):
            service.drop_column(column)
    with op.batch_alter_table("job") as job:
        job.drop_constraint("uq_job_replaces_attempt")
        for column in ("replaces", "attempt"):
            job.drop_column(column)

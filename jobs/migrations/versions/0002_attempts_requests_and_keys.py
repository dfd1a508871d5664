"""Attempts, requests, priorities and idempotency keys"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_LIVE = sa.text("ended_at IS NULL")


def upgrade() -> None:
    op.create_table(
        "attempts",
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("gpu_class", sa.String(length=32), nullable=True),
        sa.Column("device", sa.String(length=100), nullable=True),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("first_step", sa.Integer(), nullable=True),
        sa.Column("last_step", sa.Integer(), nullable=True),
        sa.Column("device_report", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"]),
        sa.PrimaryKeyConstraint("job_id", "number"),
    )
    op.create_index("attempts_live_device", "attempts", ["device"], unique=True, sqlite_where=_LIVE, postgresql_where=_LIVE)
    op.create_index("attempts_outcome_started", "attempts", ["outcome", "started_at"], unique=False)
    op.create_table(
        "dispatch",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("round_at", sa.Float(), nullable=False),
        sa.Column("reap_from", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.add_column("jobs", sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("gpu_class", sa.String(length=32), nullable=True))
    op.add_column("jobs", sa.Column("rerun_of", sa.String(length=32), nullable=True))
    op.add_column("jobs", sa.Column("start_from", sa.String(length=32), nullable=True))
    op.add_column("jobs", sa.Column("idempotency_key", sa.String(length=255), nullable=True))
    op.add_column("jobs", sa.Column("request_sha256", sa.String(length=64), nullable=True))
    op.add_column("jobs", sa.Column("requested", sa.String(length=16), nullable=True))
    op.add_column("jobs", sa.Column("reported", sa.Integer(), nullable=False, server_default="0"))
    op.alter_column("jobs", "progress_step", new_column_name="checkpoint_step")
    op.execute(
        sa.text(
            "INSERT INTO attempts (job_id, number, worker, started_at, ended_at, outcome) "
            "SELECT id, attempt, COALESCE(worker, 'unknown'), COALESCE(started_at, created_at), "
            "CASE WHEN state = 'running' THEN NULL ELSE COALESCE(finished_at, started_at, created_at) END, "
            "CASE WHEN state IN ('running', 'queued') THEN NULL ELSE state END FROM jobs WHERE attempt > 0"
        )
    )
    op.execute(sa.text("UPDATE jobs SET requested = 'cancel' WHERE cancel_requested_at IS NOT NULL AND state = 'running'"))
    op.drop_column("jobs", "cancel_requested_at")
    op.drop_column("jobs", "worker")
    op.create_index("jobs_queue", "jobs", ["state", sa.text("priority DESC"), "number", "gpu_class"], unique=False)
    op.create_index("jobs_idempotency_key", "jobs", ["idempotency_key"], unique=True)


def downgrade() -> None:
    op.drop_index("jobs_idempotency_key", table_name="jobs")
    op.drop_index("jobs_queue", table_name="jobs")
    op.add_column("jobs", sa.Column("worker", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("cancel_requested_at", sa.Float(), nullable=True))
    op.alter_column("jobs", "checkpoint_step", new_column_name="progress_step")
    for name in (
        "reported",
        "requested",
        "request_sha256",
        "idempotency_key",
        "start_from",
        "rerun_of",
        "gpu_class",
        "priority",
    ):
        op.drop_column("jobs", name)
    op.drop_table("dispatch")
    op.drop_table("attempts")

"""Tenants that take turns, API keys, and one table of tasks where comparisons were"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_ANSWER = (
    "number, id, request, state, attempt, lease_token, lease_expires_at, partial, result, error, created_at, published_at, "
    "finished_at, job_id"
)


def upgrade() -> None:
    for table in ("jobs", "datasets"):
        op.add_column(table, sa.Column("tenant", sa.String(length=64), nullable=False, server_default="default"))
    op.add_column("jobs", sa.Column("turn", sa.BigInteger(), nullable=False, server_default="0"))
    op.execute(sa.text("UPDATE jobs SET turn = number"))
    for name in ("state_number", "method_number", "method_state_number", "queue", "idempotency_key"):
        op.drop_index(f"jobs_{name}", table_name="jobs")
    op.create_index("jobs_tenant_number", "jobs", ["tenant", "number"])
    op.create_index("jobs_tenant_state_number", "jobs", ["tenant", "state", "number"])
    op.create_index("jobs_tenant_method_number", "jobs", ["tenant", "method", "number"])
    op.create_index("jobs_tenant_method_state_number", "jobs", ["tenant", "method", "state", "number"])
    op.create_index("jobs_queue", "jobs", ["state", sa.text("priority DESC"), "turn", "number", "gpu_class"])
    op.create_index("jobs_turn", "jobs", ["priority", "turn"])
    op.create_index("jobs_tenant_turn", "jobs", ["tenant", "priority", "turn"])
    op.create_index("jobs_tenant_idempotency_key", "jobs", ["tenant", "idempotency_key"], unique=True)
    op.create_index("datasets_tenant_number", "datasets", ["tenant", "number"])
    op.create_index("attempts_started", "attempts", ["started_at"])
    op.create_table(
        "api_keys",
        sa.Column("number", _BIG_ID, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("max_priority", sa.Integer(), nullable=False),
        sa.Column("prefix", sa.String(length=16), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=True),
        sa.Column("revoked_at", sa.Float(), nullable=True),
        sa.Column("last_used_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("id"),
    )
    op.create_index("ix_api_keys_prefix", "api_keys", ["prefix"])
    _make_answers("tasks", is_task=True)
    same = f"INSERT INTO tasks (tenant, kind, {_ANSWER}) SELECT 'default', 'compare', {_ANSWER} FROM comparisons"  # noqa: S608
    op.execute(sa.text(same))
    _go_on_counting("tasks")
    op.drop_table("comparisons")
    op.create_index("tasks_state_number", "tasks", ["state", "number"])
    op.create_index("tasks_job", "tasks", ["job_id", "kind", "number"])


def downgrade() -> None:
    _make_answers("comparisons", is_task=False)
    op.execute(sa.text(f"INSERT INTO comparisons ({_ANSWER}) SELECT {_ANSWER} FROM tasks WHERE kind = 'compare'"))  # noqa: S608
    _go_on_counting("comparisons")
    op.drop_table("tasks")
    op.create_index("comparisons_job", "comparisons", ["job_id", "number"])
    op.create_index("comparisons_state_number", "comparisons", ["state", "number"])
    op.drop_table("api_keys")
    op.drop_index("attempts_started", table_name="attempts")
    op.drop_index("datasets_tenant_number", table_name="datasets")
    for name in (
        "jobs_tenant_idempotency_key",
        "jobs_tenant_turn",
        "jobs_turn",
        "jobs_queue",
        "jobs_tenant_method_state_number",
        "jobs_tenant_method_number",
        "jobs_tenant_state_number",
        "jobs_tenant_number",
    ):
        op.drop_index(name, table_name="jobs")
    op.create_index("jobs_state_number", "jobs", ["state", "number"])
    op.create_index("jobs_method_number", "jobs", ["method", "number"])
    op.create_index("jobs_method_state_number", "jobs", ["method", "state", "number"])
    op.create_index("jobs_queue", "jobs", ["state", sa.text("priority DESC"), "number", "gpu_class"])
    op.create_index("jobs_idempotency_key", "jobs", ["idempotency_key"], unique=True)
    op.drop_column("jobs", "turn")
    for table in ("jobs", "datasets"):
        op.drop_column(table, "tenant")


def _make_answers(table: str, *, is_task: bool) -> None:
    own = [
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
    ]
    op.create_table(
        table,
        sa.Column("number", _BIG_ID, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=32), nullable=False),
        *(own if is_task else []),
        sa.Column("job_id", sa.String(length=32), nullable=is_task),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("lease_token", sa.String(length=32), nullable=True),
        sa.Column("lease_expires_at", sa.Float(), nullable=True),
        sa.Column("partial", sa.JSON(), nullable=True),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("published_at", sa.Float(), nullable=True),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"]),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("id"),
    )


def _go_on_counting(table: str) -> None:
    """PostgreSQL's sequence does not know of numbers that were copied."""
    if op.get_bind().dialect.name == "postgresql":
        last = f"SELECT COALESCE(MAX(number), 0) + 1 FROM {table}"  # noqa: S608
        op.execute(sa.text(f"SELECT setval(pg_get_serial_sequence('{table}', 'number'), ({last}), false)"))

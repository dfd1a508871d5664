"""Turns, cancels, losses and counters of tasks"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0014"
down_revision: str | None = "0013"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_INDEXES = {
    "tasks_queue": ["state", "turn", "number", "kind", "tenant"],
    "tasks_turn": ["kind", "turn"],
    "tasks_tenant_turn": ["tenant", "kind", "turn"],
    "tasks_tenant_state": ["tenant", "state", "request_sha256"],
}


def upgrade() -> None:
    op.add_column("tasks", sa.Column("turn", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("tasks", sa.Column("request_sha256", sa.String(64), nullable=True))
    op.add_column("tasks", sa.Column("requested", sa.String(16), nullable=True))
    op.add_column("tasks", sa.Column("losses", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("tasks", sa.Column("not_before", sa.Float(), nullable=True))
    for name, columns in _INDEXES.items():
        op.create_index(name, "tasks", columns)
    op.create_table(
        "task_ends",
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("outcome", sa.String(16), primary_key=True),
        sa.Column("count", sa.BigInteger(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("task_ends")
    # The earlier version knows no cancelled tasks; to it, they failed.
    op.execute("UPDATE tasks SET state = 'failed' WHERE state = 'cancelled'")
    for name in reversed(_INDEXES):
        op.drop_index(name, "tasks")
    for name in ("not_before", "losses", "requested", "request_sha256", "turn"):
        op.drop_column("tasks", name)

"""Tokens and memory of attempts, for who watches"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("tokens", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("attempts", sa.Column("memory_bytes", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("attempts", "memory_bytes")
    op.drop_column("attempts", "tokens")

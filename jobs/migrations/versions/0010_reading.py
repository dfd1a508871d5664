"""How a dataset's file was read"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("datasets", sa.Column("reading", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("datasets", "reading")

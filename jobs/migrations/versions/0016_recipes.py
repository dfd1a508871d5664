"""The recipe that set fields of a job's spec"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0016"
down_revision: str | None = "0015"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("recipe", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "recipe")

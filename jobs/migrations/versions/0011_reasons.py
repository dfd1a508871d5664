"""Why an attempt ended, as a code with its values"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("reason_said", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("attempts", "reason_said")

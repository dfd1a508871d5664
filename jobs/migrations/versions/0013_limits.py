"""Why a job is paused, and signs of life"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0013"
down_revision: str | None = "0012"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("pause_reason", sa.String(16), nullable=True))
    op.create_table(
        "signs_of_life",
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("host", sa.String(255), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("gpu_class", sa.String(32), nullable=True),
        sa.Column("device", sa.String(100), nullable=True),
        sa.Column("trackers", sa.JSON(), nullable=False),
        sa.Column("seen_at", sa.Float(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("signs_of_life")
    op.drop_column("jobs", "pause_reason")

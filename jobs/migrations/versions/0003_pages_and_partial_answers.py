"""An index for pages of jobs by method and state at once; answers while they grow"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_index("jobs_method_state_number", "jobs", ["method", "state", "number"], unique=False)
    op.add_column("comparisons", sa.Column("partial", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("comparisons", "partial")
    op.drop_index("jobs_method_state_number", table_name="jobs")

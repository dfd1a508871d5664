"""What a run did to its model"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("effect", sa.String(length=16), nullable=True))
    op.create_index("jobs_state_effect", "jobs", ["state", "effect"])
    op.add_column("past_attempts", sa.Column("effect", sa.String(length=16), nullable=True))
    op.create_index("past_attempts_outcome_effect", "past_attempts", ["outcome", "effect"])


def downgrade() -> None:
    op.drop_index("past_attempts_outcome_effect", "past_attempts")
    op.drop_column("past_attempts", "effect")
    op.drop_index("jobs_state_effect", "jobs")
    op.drop_column("jobs", "effect")

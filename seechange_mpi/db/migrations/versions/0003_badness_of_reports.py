"""Badness bits of reports: why a section is doubtful or has failed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("reports", sa.Column("_bitflag", sa.BigInteger(), server_default="0", nullable=False))
    op.create_index("ix_reports__bitflag", "reports", ["_bitflag"])


def downgrade() -> None:
    """Take it away."""
    op.drop_index("ix_reports__bitflag", "reports")
    op.drop_column("reports", "_bitflag")

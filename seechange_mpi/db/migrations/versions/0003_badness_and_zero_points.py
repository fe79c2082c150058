"""Badness bits of reports; what a zero point says besides its value."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


_FIGURES = ("scatter", "colour_term", "colour_slope", "colour_slope_err", "colour_ref", "outlier_fraction", "wing",
            "wing_err", "blocked", "map_err")


def upgrade() -> None:
    """Add the columns."""
    for name in _FIGURES:
        op.add_column("zero_points", sa.Column(name, sa.REAL(), nullable=True))
    op.add_column("zero_points", sa.Column("map", sa.ARRAY(sa.REAL()), nullable=True))
    op.add_column("reports", sa.Column("_bitflag", sa.BigInteger(), server_default="0", nullable=False))
    op.create_index("ix_reports__bitflag", "reports", ["_bitflag"])


def downgrade() -> None:
    """Take them away."""
    for name in ("map", *_FIGURES):
        op.drop_column("zero_points", name)
    op.drop_index("ix_reports__bitflag", "reports")
    op.drop_column("reports", "_bitflag")

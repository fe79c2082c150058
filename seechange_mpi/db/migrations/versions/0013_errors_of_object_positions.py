"""Errors of the positions where objects were founded, for matching by likelihood."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; objects that are there get the errors of the measurement that founded them."""
    for name in ("ra_err", "dec_err"):
        op.add_column("objects", sa.Column(name, sa.REAL(), nullable=True))
    op.execute("UPDATE objects o SET ra_err = m.ra_err, dec_err = m.dec_err FROM measurements m "
               "WHERE m.object_id = o._id AND m.ra = o.ra AND m.dec = o.dec AND NOT m.is_bad")


def downgrade() -> None:
    """Take them away."""
    for name in ("ra_err", "dec_err"):
        op.drop_column("objects", name)

"""What an astrometric solution says of itself besides rms and count."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_FIGURES = ("rms_radial_mas", "max_residual_mas", "mean_ra_mas", "mean_dec_mas", "chi2_dof", "floor_mas",
            "error_centre_mas", "error_corner_mas", "header_offset_ra_arcsec", "header_offset_dec_arcsec",
            "header_rotation_deg", "header_scale", "log10_chance")


def upgrade() -> None:
    """Add the columns."""
    op.add_column("world_coordinates", sa.Column("fit_order", sa.Integer(), nullable=True))
    for name in _FIGURES:
        op.add_column("world_coordinates", sa.Column(name, sa.REAL(), nullable=True))


def downgrade() -> None:
    """Take them away."""
    for name in (*_FIGURES, "fit_order"):
        op.drop_column("world_coordinates", name)

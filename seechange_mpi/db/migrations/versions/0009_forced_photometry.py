"""Forced photometry of objects in difference images."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_REALS = ("flux_psf", "flux_psf_err", "chi2_psf", "flux_aperture", "flux_aperture_err", "aper_radius", "zp", "lim_mag",
          "image_lim_mag")


def _to(table: str, column: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"{table}._id"], name=op.f(f"fk_forced_photometry_{column}"),
                                   ondelete="CASCADE")


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "forced_photometry",
        sa.Column("_id", sa.UUID(), nullable=False),
        sa.Column("object_id", sa.UUID(), nullable=False),
        sa.Column("image_id", sa.UUID(), nullable=False),
        sa.Column("provenance_id", sa.Text(), nullable=False),
        *(sa.Column(n, sa.Double(), nullable=False) for n in ("ra", "dec", "mjd")),
        sa.Column("filter", sa.Text(), nullable=False),
        *(sa.Column(n, sa.Double(), nullable=True) for n in ("x", "y")),
        *(sa.Column(n, sa.REAL(), nullable=True) for n in _REALS),
        sa.Column("flags", sa.Integer(), nullable=False),
        sa.Column("nbadpix", sa.Integer(), nullable=True),
        *(sa.Column(n, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)
          for n in ("created_at", "modified")),
        _to("objects", "object_id"),
        _to("images", "image_id"),
        _to("provenances", "provenance_id"),
        sa.PrimaryKeyConstraint("_id", name=op.f("pk_forced_photometry")),
        sa.UniqueConstraint("object_id", "image_id", "provenance_id",
                            name=op.f("uq_forced_photometry_object_id_image_id_provenance_id")),
    )
    for column in ("created_at", "image_id", "mjd", "object_id", "provenance_id"):
        op.create_index(op.f(f"ix_forced_photometry_{column}"), "forced_photometry", [column], unique=False)


def downgrade() -> None:
    """Take it away."""
    op.drop_table("forced_photometry")

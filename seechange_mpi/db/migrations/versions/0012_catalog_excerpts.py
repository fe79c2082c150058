"""Excerpts of star catalogues."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_CORNERS = tuple(f"{c}_corner_{n}" for n in ("00", "01", "10", "11") for c in ("ra", "dec"))


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "catalog_excerpts",
        sa.Column("_id", sa.UUID(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("num_items", sa.Integer(), nullable=False),
        sa.Column("minmag", sa.REAL(), nullable=True),
        sa.Column("maxmag", sa.REAL(), nullable=True),
        sa.Column("filters", sa.ARRAY(sa.Text()), nullable=False),
        *(sa.Column(n, sa.Double(), nullable=False) for n in ("ra", "dec")),
        sa.Column("healpix", sa.BigInteger(), nullable=False),
        *(sa.Column(n, sa.Double(), nullable=False) for n in ("radius", *_CORNERS)),
        sa.Column("filepath", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        *(sa.Column(n, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)
          for n in ("created_at", "modified")),
        sa.PrimaryKeyConstraint("_id", name=op.f("pk_catalog_excerpts")),
    )
    for column in ("created_at", "healpix"):
        op.create_index(op.f(f"ix_catalog_excerpts_{column}"), "catalog_excerpts", [column], unique=False)


def downgrade() -> None:
    """Take it away."""
    op.drop_table("catalog_excerpts")

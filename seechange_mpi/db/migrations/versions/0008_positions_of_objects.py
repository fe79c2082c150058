"""Mean positions of objects."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "object_positions",
        sa.Column("_id", sa.UUID(), nullable=False),
        sa.Column("object_id", sa.UUID(), nullable=False),
        sa.Column("provenance_id", sa.Text(), nullable=False),
        sa.Column("ra", sa.Double(), nullable=False),
        sa.Column("dec", sa.Double(), nullable=False),
        sa.Column("healpix", sa.BigInteger(), nullable=False),
        *(sa.Column(n, sa.REAL(), nullable=True) for n in ("dra", "ddec", "ra_dec_cov")),
        sa.Column("n_measurements", sa.Integer(), nullable=True),
        *(sa.Column(n, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)
          for n in ("created_at", "modified")),
        sa.ForeignKeyConstraint(["object_id"], ["objects._id"], name=op.f("fk_object_positions_object_id"),
                                ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["provenance_id"], ["provenances._id"], name=op.f("fk_object_positions_provenance_id"),
                                ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("_id", name=op.f("pk_object_positions")),
        sa.UniqueConstraint("object_id", "provenance_id", name=op.f("uq_object_positions_object_id_provenance_id")),
    )
    for column in ("created_at", "healpix", "object_id", "provenance_id"):
        op.create_index(op.f(f"ix_object_positions_{column}"), "object_positions", [column], unique=False)


def downgrade() -> None:
    """Take it away."""
    op.drop_table("object_positions")

"""What an archive holds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "archived_files",
        sa.Column("_id", sa.UUID(), nullable=False),
        sa.Column("archive", sa.Text(), nullable=False),
        sa.Column("filepath", sa.Text(), nullable=False),
        sa.Column("exposure", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("verified_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("modified", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("_id", name=op.f("pk_archived_files")),
        sa.UniqueConstraint("archive", "filepath", name=op.f("uq_archived_files_archive_filepath")),
    )
    op.create_index(op.f("ix_archived_files_created_at"), "archived_files", ["created_at"])
    op.create_index(op.f("ix_archived_files_exposure"), "archived_files", ["exposure"])


def downgrade() -> None:
    """Take it away; the archive itself is not touched."""
    op.drop_table("archived_files")

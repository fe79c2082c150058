"""Calibration frames: data files and calibrator files."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None


def _times() -> list[sa.Column]:
    return [sa.Column(name, sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False)
            for name in ('created_at', 'modified')]


def upgrade() -> None:
    op.create_table('data_files',
    sa.Column('_id', sa.UUID(), nullable=False),
    sa.Column('provenance_id', sa.Text(), nullable=False),
    sa.Column('filepath', sa.Text(), nullable=False),
    sa.Column('sha256', sa.Text(), nullable=False),
    *_times(),
    sa.ForeignKeyConstraint(['provenance_id'], ['provenances._id'], name=op.f('fk_data_files_provenance_id'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('_id', name=op.f('pk_data_files')),
    sa.UniqueConstraint('filepath', name=op.f('uq_data_files_filepath'))
    )
    op.create_index(op.f('ix_data_files_created_at'), 'data_files', ['created_at'], unique=False)
    op.create_index(op.f('ix_data_files_provenance_id'), 'data_files', ['provenance_id'], unique=False)
    op.create_table('calibrator_files',
    sa.Column('_id', sa.UUID(), nullable=False),
    sa.Column('type', sa.Text(), nullable=False),
    sa.Column('calibrator_set', sa.Text(), nullable=False),
    sa.Column('flat_type', sa.Text(), nullable=True),
    sa.Column('instrument', sa.Text(), nullable=False),
    sa.Column('sensor_section', sa.Text(), nullable=False),
    sa.Column('filter', sa.Text(), nullable=True),
    sa.Column('image_id', sa.UUID(), nullable=True),
    sa.Column('datafile_id', sa.UUID(), nullable=True),
    sa.Column('validity_start', sa.DateTime(timezone=True), nullable=True),
    sa.Column('validity_end', sa.DateTime(timezone=True), nullable=True),
    sa.Column('info', postgresql.JSONB(astext_type=sa.Text()), server_default='{}', nullable=False),
    *_times(),
    sa.CheckConstraint("calibrator_set IN ('externally_supplied', 'general', 'nightly')", name=op.f('ck_calibrator_files_calibrator_set')),
    sa.CheckConstraint('num_nonnulls(image_id, datafile_id) = 1', name=op.f('ck_calibrator_files_one_file')),
    sa.ForeignKeyConstraint(['datafile_id'], ['data_files._id'], name=op.f('fk_calibrator_files_datafile_id'), ondelete='CASCADE'),
    sa.ForeignKeyConstraint(['image_id'], ['images._id'], name=op.f('fk_calibrator_files_image_id'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('_id', name=op.f('pk_calibrator_files'))
    )
    for column in ('calibrator_set', 'created_at', 'datafile_id', 'image_id', 'type', 'validity_end', 'validity_start'):
        op.create_index(op.f(f'ix_calibrator_files_{column}'), 'calibrator_files', [column], unique=False)
    op.create_index('ix_calibrator_files_lookup', 'calibrator_files', ['instrument', 'sensor_section', 'type'], unique=False)


def downgrade() -> None:
    op.drop_table('calibrator_files')
    op.drop_table('data_files')

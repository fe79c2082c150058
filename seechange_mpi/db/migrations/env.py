"""Alembic environment: runs on the connection it is given."""

from alembic import context

from seechange_mpi.db.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, compare_type=True)
with context.begin_transaction():
    context.run_migrations()

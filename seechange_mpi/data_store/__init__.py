"""Products of one section, found by provenance in memory, in bundles and through the database; without MPI."""

from seechange_mpi.data_store.holdings import local_file
from seechange_mpi.data_store.store import DataStore

__all__ = ["DataStore", "local_file"]

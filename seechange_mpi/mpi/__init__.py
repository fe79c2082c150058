"""The MPI run: coordinator on rank 0, workers, launcher, work list, progress, closing table."""

"""SeeChange-MPI: raw survey exposures to transient objects, as an MPI batch application."""

__version__ = "0.1.0"

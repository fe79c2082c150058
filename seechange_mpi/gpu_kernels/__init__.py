"""Array kernels on NumPy or CuPy: no I/O, no MPI, no configuration, no logging set-up, no database.

Arrays are [y, x] with pixel centres at integers from 0; float32 in gives float32 out; inputs are never
changed; masks are boolean with True = bad.
"""

from seechange_mpi.gpu_kernels.zogy import ZogyResult, zogy_subtract

__all__ = ["ZogyResult", "zogy_subtract"]

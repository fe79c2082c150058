"""Array kernels on NumPy or CuPy: no I/O, no MPI, no configuration, no logging set-up, no database.

Arrays are [y, x] with pixel centres at integers from 0; float32 in gives float32 out; inputs are never
changed; masks are boolean with True = bad.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seechange_mpi.gpu_kernels.zogy import ZogyResult, zogy_subtract

__all__ = ["ZogyResult", "zogy_subtract"]


def __getattr__(name: str) -> Any:
    # imported when used: who only asks for the device needs no arrays
    if name in __all__:
        from seechange_mpi.gpu_kernels import zogy

        return getattr(zogy, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

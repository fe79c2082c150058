"""Everything a section imports, at once: for processes that are forked when it is there."""

from seechange_mpi.io import catalog, raw, shard
from seechange_mpi.pipeline import section, top_level, wcs_tools

__all__ = ["catalog", "raw", "section", "shard", "top_level", "wcs_tools"]

"""Real ranks whose sections sleep: hardly slower than longest-first scheduling that knows every true duration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from seechange_mpi.mpi.launcher import find_mpiexec, launch_environment, mpi_kind
from seechange_mpi.mpi.runlog import read_log
from seechange_mpi.mpi.trace import chrome_trace

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import sleeping
from sleeping import longest_first, sleepy_exposures


@pytest.mark.slow
@pytest.mark.parametrize("workers", [3, 4, 8, 12])
def test_makespan_in_the_trace_is_that_of_longest_first(workers, tmp_path):
    """6 exposures of 8 sections of 0.4 to 1.6 s; the trace shows when the first began and the last ended."""
    mpiexec = find_mpiexec()
    done = subprocess.run(
        [mpiexec, "-n", str(workers + 1), sys.executable, sleeping.__file__, "--exposures", "6",
         "--mean", "1.0", "--seed", "2", "--folder", str(tmp_path)], capture_output=True, text=True, timeout=60,
        env=os.environ | launch_environment(mpi_kind(mpiexec)), check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(next(x for x in done.stdout.splitlines() if x.startswith("RESULT ")).removeprefix("RESULT "))
    assert result["finished"] == [f"e{k:05d}" for k in range(6)], "commits in the order of claims"
    slices = [e for e in chrome_trace(read_log(tmp_path))["traceEvents"] if e.get("cat") == "section"]
    assert len(slices) == 48
    assert len({e["tid"] for e in slices}) == workers, "every rank was at work"
    makespan = (max(e["ts"] + e["dur"] for e in slices) - min(e["ts"] for e in slices)) / 1e6
    true = [d for e in sleepy_exposures(6, 8, 1.0, 2) for d in e.durations.values()]
    assert makespan <= 1.05 * longest_first(true, workers)

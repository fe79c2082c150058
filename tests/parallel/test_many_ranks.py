"""Many more ranks than cores: every section once, and all ranks leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from seechange_mpi.mpi.launcher import find_mpiexec, launch_environment, mpi_kind

SLEEPING = Path(__file__).parents[2] / "benchmarks" / "sleeping.py"


@pytest.mark.slow
def test_many_ranks_do_every_section_and_leave():
    n = 16
    mpiexec = find_mpiexec()
    done = subprocess.run([mpiexec, "-n", str(n), sys.executable, str(SLEEPING), "--exposures", "1", "--sections", "62",
                           "--mean", "0.1"], capture_output=True, text=True, timeout=150,
                          env=os.environ | launch_environment(mpi_kind(mpiexec)), check=False)
    assert done.returncode == 0, done.stderr
    line = next(text for text in done.stdout.splitlines() if text.startswith("RESULT"))
    result = json.loads(line.removeprefix("RESULT "))
    assert result["finished"] == ["e00000"]
    assert result["workers"] == n - 1

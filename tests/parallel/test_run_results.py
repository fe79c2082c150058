"""Exit codes that cannot lie, the closing table, the launcher."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from seechange_mpi.cli.run import _without_n
from seechange_mpi.model.errors import ConfigError, ExitCode
from seechange_mpi.model.task import Outcome, SectionReport
from seechange_mpi.mpi.comm import announced_size
from seechange_mpi.mpi.launcher import find_mpiexec, launch_environment, mpi_kind
from seechange_mpi.mpi.progress import Progress
from seechange_mpi.mpi.results import ExposureResult, causes, exit_code
from seechange_mpi.mpi.summary import closing_words


def outcome(section="S1", status="done", *, bug=False):
    report = SectionReport(success=status != "failed", error_step="astrocal" if status == "failed" else "",
                           error_type="AlgorithmError", error_message="no match", error_traceback="Traceback\n  boom")
    return Outcome("e", section, status, report, summary={"seconds": 1.2, "zp": 29.4, "rss_mb": 200.0}, is_bug=bug)


def result(state="done", **outcomes):
    return ExposureResult("e", state, outcomes)


@pytest.mark.parametrize(("results", "code"), [
    ([], ExitCode.OK),
    ([result("done"), result("nothing_to_do"), result("partial")], ExitCode.OK),
    ([result("done"), result("sections_failed", S1=outcome(status="failed"))], ExitCode.SECTIONS_FAILED),
    ([result("given_back")], ExitCode.DRAINED),
    ([result("given_back"), result("sections_failed", S1=outcome(status="failed"))], ExitCode.SECTIONS_FAILED),
    ([result("sections_failed"), result("failed")], ExitCode.EXPOSURE_FAILED),
    ([result("uncommitted")], ExitCode.EXPOSURE_FAILED),
    ([result("failed"), result("sections_failed", S1=outcome(status="failed", bug=True))], ExitCode.BUG),
    # whatever the state says, a failed section is never a success
    ([result("done", S1=outcome(status="failed"))], ExitCode.SECTIONS_FAILED),
])
def test_the_first_that_applies_of_1_4_3_5(results, code):
    assert exit_code(results) == code


def test_all_causes_are_printed():
    results = [result("sections_failed", S1=outcome(status="failed"), S2=outcome("S2")),
               ExposureResult("x", "failed", message="x.fits: expected a FITS file, found text")]
    text = "\n".join(causes(results))
    assert "e S1: astrocal: AlgorithmError: no match" in text
    assert "x: x.fits: expected a FITS file" in text
    words = closing_words(results)
    assert "S2       done" in words
    assert "29.400" in words
    assert "run the same command again" in words


def test_closing_words_name_the_next_step():
    assert "refs add e" in closing_words([result("done", S1=outcome(status="no_reference"))])
    assert "nothing is left to do" in closing_words([result("nothing_to_do")])
    assert "queue list" in closing_words([])
    words = closing_words([result("done")], "the time limit (one more exposure needs about 9 s, 3 s were left)")
    assert "stopped before the end by the time limit (one more exposure needs about 9 s, 3 s were left)" in words


def test_progress_off_a_terminal_is_plain_lines():
    stream = io.StringIO()
    progress = Progress(stream)
    progress.exposure_started("e", 2, 1, 3, ["bad.h5: truncated"])
    progress.section_done(outcome())
    progress.section_done(outcome("S2", "failed"))
    text = stream.getvalue()
    assert "\x1b" not in text
    assert "2 sections on 2 processes, 1 already complete" in text
    assert "S2: FAILED in 1.2 s (2/2) at astrocal: no match" in text
    assert "damaged shard: bad.h5" in text


@pytest.mark.parametrize("args", [["-n", "4", "a.fits"], ["--processes", "4", "a.fits"], ["-n4", "a.fits"],
                                  ["--processes=4", "a.fits"]])
def test_the_number_of_processes_is_not_passed_on(args):
    assert _without_n(args) == ["a.fits"]


def test_launcher_is_found_and_its_environment_fits():
    mpiexec = find_mpiexec()
    assert os.access(mpiexec, os.X_OK)
    with pytest.raises(ConfigError, match=r"run\.mpiexec"):
        find_mpiexec("/no/such/mpiexec")
    assert "OMPI_MCA_btl" not in launch_environment("openmpi4")
    assert "OMPI_ALLOW_RUN_AS_ROOT" not in launch_environment("other")
    assert mpi_kind(sys.executable) == "other"


def test_announced_size(monkeypatch):
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "SLURM_PROCID", "MPI_LOCALNRANKS"):
        monkeypatch.delenv(name, raising=False)
    assert announced_size() is None
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "7")
    assert announced_size() == 7


def test_a_killed_rank_ends_the_run_with_1(tmp_path):
    """mpiexec ends abnormally: the launcher says so and returns 1."""
    code = ("from seechange_mpi.mpi import launcher; import sys\n"
            "import subprocess\n"
            "launcher.find_mpiexec = lambda c=None: sys.argv[1]\n"
            "sys.exit(launcher.launch(2, ['run']))")
    fake = tmp_path / "mpiexec"
    fake.write_text("#!/bin/sh\nkill -9 $$\n")
    fake.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code, str(fake)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "a process was lost" in done.stderr


def test_of_exposures_long_over_what_went_wrong_is_kept():
    from seechange_mpi.mpi.results import causes

    bad = SectionReport(error_step="detection", error_type="AlgorithmError", error_message="no stars")
    outcomes = {"S0": Outcome("e", "S0", "done", SectionReport(success=True)),
                "S1": Outcome("e", "S1", "failed", bad),
                "S2": Outcome("e", "S2", "no_reference", SectionReport(success=True)),
                "S3": Outcome("e", "S3", "no_reference", SectionReport(success=True))}
    result = ExposureResult("e", "sections_failed", outcomes, ["S4"], objects={"S0": 3})
    wrong, code = causes([result]), exit_code([result])
    result.forget_details()
    assert list(result.outcomes) == ["S1", "S2"]
    assert causes([result]) == wrong
    assert exit_code([result]) == code
    assert not result.reused

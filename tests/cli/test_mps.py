"""The MPS helper, with a stand-in for NVIDIA's program."""

from __future__ import annotations

import os
import subprocess

import pytest

FAKE = """#!/bin/sh
# answers a second after it was started; keeps its state in its pipe folder
state="$CUDA_MPS_PIPE_DIRECTORY/started"
if [ "$1" = "-d" ]; then [ -n "$NEVER" ] || date +%s%N > "$state"; exit 0; fi
read words
[ -f "$state" ] || exit 1
[ $(( $(date +%s%N) - $(cat "$state") )) -gt 500000000 ] || exit 1
[ "$words" = quit ] && rm "$state"
exit 0
"""


@pytest.fixture
def control(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "nvidia-cuda-mps-control"
    program.parent.mkdir()
    program.write_text(FAKE)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return tmp_path / "mps"


def test_start_waits_until_it_answers_and_stop_until_it_is_gone(control, cli, capsys):
    assert cli("mps", "status", "--folder", control) == 4
    assert cli("mps", "start", "--folder", control) == 0
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert lines[0] == f"export CUDA_MPS_PIPE_DIRECTORY={control}/pipe"
    assert cli("mps", "status", "--folder", control) == 0, "ready when start returns"
    assert cli("mps", "start", "--folder", control) == 0, "one that runs is kept"
    assert cli("mps", "stop", "--folder", control) == 0
    assert not control.exists()
    control.mkdir()
    (control / "mine").touch()
    assert cli("mps", "stop", "--folder", control) == 0
    assert capsys.readouterr().out.endswith("it was not running\n")
    assert (control / "mine").exists(), "a folder that is not its own is left alone"


def test_one_that_never_answers_is_told(control, cli, capsys, monkeypatch):
    monkeypatch.setenv("NEVER", "1")
    assert cli("mps", "start", "--folder", control, "--timeout", "0.6") == 4
    assert "does not answer after 0.6 s" in capsys.readouterr().err


def test_without_a_driver_it_says_so(cli, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli("mps", "start", "--folder", tmp_path / "mps") == 2
    assert "no NVIDIA driver" in capsys.readouterr().err
    assert subprocess.run(["/bin/ls", os.fspath(tmp_path)], capture_output=True, check=True).stdout == b""

"""Half-written files: removed when their writer is gone, left alone while it lives; a full disk leaves none."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from seechange_mpi.io import h5util
from seechange_mpi.io.bundle import write_bundle
from seechange_mpi.io.drafts import clean_leftovers, draft_of
from seechange_mpi.model.errors import TransientError
from seechange_mpi.model.exposure import ExposureInfo

WRITER = """
import sys, time
from pathlib import Path
from seechange_mpi.io import h5util
def wait(path):
    print(path, flush=True)
    time.sleep(60)
h5util._fsync = wait
with h5util.durable_h5(Path(sys.argv[1]), "S1") as (f, tmp):
    f["x"] = 1
"""


def test_the_draft_of_a_living_writer_stays_and_that_of_a_killed_one_goes(tmp_path):
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
        draft = writer.stdout.readline().strip()
        living = clean_leftovers(tmp_path), [str(p) for p in tmp_path.iterdir()]
        writer.send_signal(signal.SIGKILL)
    assert living == (0, [draft])
    assert clean_leftovers(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_draft_of_a_killed_writer_goes_though_its_number_is_used_again(tmp_path):
    own = draft_of(tmp_path / "S1")
    *start, number, end = own.name.split(".")
    pid, began = number.split("-")
    former = own.with_name(".".join([*start, f"{pid}-{int(began) - 1}", end]))
    for path in (own, former):
        path.write_bytes(b"half")
    assert clean_leftovers(tmp_path) == 1
    assert list(tmp_path.iterdir()) == [own]


def test_the_draft_of_another_host_stays_for_hours(tmp_path):
    own = draft_of(tmp_path / "S1")
    place = own.name.split(".")[2]
    other = own.with_name(own.name.replace(place, "elsewhere-1"))
    other.write_bytes(b"half")
    assert clean_leftovers(tmp_path) == 0
    old = time.time() - 24 * 3600
    os.utime(other, (old, old))
    assert clean_leftovers(tmp_path) == 1


def test_a_full_disk_leaves_no_half_bundle_and_the_older_one_whole(tmp_path, monkeypatch):
    def full(_path):
        raise OSError(errno.ENOSPC, "No space left on device")

    exposure = ExposureInfo("e1", "simulated", "/raw/e1.fits", 60000.0, 45.0, "r", 150.0, 2.0, 1.1)
    path = tmp_path / "e1_abcdef.h5"
    write_bundle(path, exposure, [], {}, [])
    before = path.read_bytes()
    monkeypatch.setattr(h5util, "_fsync", full)
    with pytest.raises(TransientError, match=r"no space left while writing e1_abcdef: .* MB free"):
        write_bundle(path, exposure, [], {}, [])
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, "e1_abcdef.sha256"]
    assert path.read_bytes() == before

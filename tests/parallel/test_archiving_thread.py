"""The thread that uploads while a run goes on: whatever happens to the archive is said and harms nobody."""

import threading
import time

import pytest

from seechange_mpi.config.resolve import Config
from seechange_mpi.db import archiving
from seechange_mpi.db.archiving import Transfer
from seechange_mpi.model.errors import TransientError
from seechange_mpi.mpi.archiving import ArchiveThread


class Keeper:
    """An archive that is told what to do with each exposure."""

    answers: dict = {}

    def __init__(self, _config, opened):
        self.opened = opened

    def push(self, identifier):
        answer = self.answers[identifier]
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer


@pytest.fixture
def started(monkeypatch):
    monkeypatch.setattr(archiving, "Archivist", Keeper)
    notes = []
    return ArchiveThread(Config(), lambda: None, notes.append), notes


def close(thread, seconds=10.0):
    end = time.monotonic() + seconds
    thread.close(lambda: end - time.monotonic())


def test_failures_are_said_once_with_the_remedy_and_the_next_exposure_goes_up(started):
    thread, notes = started
    Keeper.answers = {"a": TransientError("the archive is away"), "b": ValueError("a bug"),
                      "c": Transfer(problems=["x is damaged", "y too"]), "d": Transfer(3, 2_000_000), "e": Transfer()}
    for name in Keeper.answers:
        thread.add(name)
    close(thread)
    assert notes[0] == ("a: committed, but not archived: the archive is away; seechange-mpi archive push uploads what "
                        "is missing")
    assert notes[1] == "b: committed, but not archived: ValueError: a bug"
    assert notes[2] == "c: committed, but not archived: x is damaged (and 1 more)"
    assert notes[3].startswith("d: archived, 3 files, 2.0 MB in ")
    assert len(notes) == 4


def test_nobody_waits_longer_than_there_is_time(started):
    thread, notes = started
    release = threading.Event()
    Keeper.answers = {"a": lambda: release.wait(20) and Transfer(), "b": Transfer()}
    thread.add("a")
    thread.add("b")
    began = time.monotonic()
    close(thread, 0.3)
    assert time.monotonic() - began < 5
    assert notes == ["not archived yet: a, b; seechange-mpi archive push uploads what is missing"]
    with pytest.raises(TransientError, match="the run has ended"):
        thread._archivist.opened()
    release.set()


def test_an_archive_that_is_not_there_is_said(tmp_path):
    notes = []
    config = Config(None, ["archive.kind=directory", f"archive.path={tmp_path / 'nowhere'}"])
    thread = ArchiveThread(config, lambda: None, notes.append)
    thread.add("a")
    close(thread)
    assert "committed, but not archived: archive.path: there is no folder" in notes[0]

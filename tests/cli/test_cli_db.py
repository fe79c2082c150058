"""Verbs db, queue and refs, as a person types them."""

import importlib
import io
import shutil
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "db"))
from made_bundles import Maker

from seechange_mpi.db.migrate import head

pytestmark = pytest.mark.db


@pytest.fixture(scope="module")
def workplace():
    """A working folder with a server that is kept, so that every verb is quick."""
    from seechange_mpi.db.server import EmbeddedServer

    folder = Path(tempfile.mkdtemp(prefix="seechange-cli-"))
    folder.chmod(0o755)
    yield folder
    server = EmbeddedServer(folder / "data")
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def verb(workplace):
    """Run a verb in this process; return exit code, output, errors."""
    from seechange_mpi.cli.main import main

    def run(*args, root="data"):
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left:
            main([*args, "--set", f"paths.root={workplace / root}"])
        return left.value.code, out.getvalue(), err.getvalue()

    assert run("db", "start")[0] == 0
    return run


@pytest.fixture(scope="module")
def bundle(workplace):
    return Maker(workplace)({"S1": {"ra": 150.0, "dec": 2.0, "at": [(150.0, 2.0)]}, "S2": {"fails": "astrocal"}})


def test_db_from_start_to_stop(verb):
    code, out, _ = verb("db", "init")
    assert code == 0
    assert out.startswith(f"the schema is at revision {head()}\n")
    assert "q3c" in out
    code, out, _ = verb("db", "status")
    assert code == 0
    assert "PostgreSQL" in out
    assert "objects" in out
    assert verb("db", "stop")[:2] == (0, "stopped\n")
    assert verb("db", "stop")[:2] == (0, "it was not running\n")
    code, out, _ = verb("db", "start")
    assert code == 0
    assert out.startswith("postgresql://")


def test_commit_and_commit_again(verb, bundle, workplace):
    code, out, err = verb("db", "commit", str(bundle))
    assert (code, err) == (0, "")
    assert "2 images, 1 measurements, 1 new objects" in out
    assert "everything is there already" in verb("db", "commit", str(bundle))[1]
    other = Maker(workplace)({"S1": {"ra": 150.0, "dec": 2.0, "zp": 26.0, "at": [(150.0, 2.0)]}}, suffix="b")
    code, _, err = verb("db", "commit", str(other))
    assert code == 4
    assert err.count("\n") == 1
    assert "--replace" in err
    assert verb("db", "commit", str(other), "--replace")[0] == 0


def test_commit_of_what_is_pending(verb, tmp_path):
    path = Maker(tmp_path)({"S1": {"ra": 151.0, "dec": 2.0, "at": [(151.0, 2.0)]}}, name="pending")
    code, out, err = verb("db", "commit", "--pending", str(tmp_path))
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith(f"{path.name}: 2 images")
    assert verb("db", "commit", "--pending", str(tmp_path))[:2] == (
        0, "nothing is pending: the database has all of 1 bundle(s)\n")
    assert verb("db", "commit", "--pending")[0] == 0
    (tmp_path / "half.h5").write_bytes(path.read_bytes()[:2000])
    code, out, _ = verb("db", "commit", "--pending", str(tmp_path))
    assert code == 4
    assert "half.h5" in out
    assert verb("db", "commit", "--pending", str(tmp_path / "none"))[0] == 2
    assert verb("db", "commit")[0] == 2


def test_commit_of_something_else(verb, tmp_path):
    path = tmp_path / "x.h5"
    path.write_text("not a bundle")
    code, _, err = verb("db", "commit", str(path))
    assert code == 4
    assert str(path) in err
    code, _, err = verb("db", "commit", str(tmp_path / "none.h5"))
    assert code == 4
    assert "none.h5" in err


def test_refs(verb, bundle):
    verb("db", "commit", str(bundle))
    code, out, _ = verb("refs", "add", "e1")
    assert code == 0
    assert "e1: 1 sections are new references in 'default' (S1)" in out
    assert "there already" in verb("refs", "add", str(bundle))[1]
    code, out, _ = verb("refs", "list")
    assert code == 0
    assert "e1" in out
    code, _, err = verb("refs", "add", "e7")
    assert code == 2
    assert err.startswith("error: e7: no calibrated section of it is in the database")
    assert verb("refs", "remove", "e1")[:2] == (0, "e1: 1 sections removed from 'default'\n")
    assert verb("refs", "remove", "e1")[0] == 2
    assert "there are no references" in verb("refs", "list")[1]


def test_queue(verb, tmp_path):
    raw = tmp_path / "n1.fits"
    raw.touch()
    assert "the queue is empty" in verb("queue", "list")[1]
    assert verb("queue", "add", str(raw), "--priority", "3")[:2] == (0, "n1\n")
    assert verb("queue", "hold", "n1")[:2] == (0, "1 held\n")
    code, out, _ = verb("queue", "list")
    assert code == 0
    assert "held" in out
    assert verb("queue", "release", "n1")[:2] == (0, "1 released\n")
    assert verb("queue", "retry", "n1")[:2] == (0, "0 ready again\n")
    code, out, _ = verb("queue", "why", "n1")
    assert code == 0
    assert out.startswith("n1 (simulated): ready, 0 attempts")
    code, _, err = verb("queue", "why", "zz")
    assert (code, err) == (2, "error: not in the queue: zz; see seechange-mpi queue list\n")
    code, _, err = verb("queue", "add", str(tmp_path / "none.fits"))
    assert code == 4
    assert "none.fits" in err
    assert verb("queue", "add", str(raw), "--through", "nonsense")[0] == 2


def test_a_database_that_is_down_is_one_clear_line(verb, tmp_path):
    url = f"database.url=postgresql://me:secret@/science?host={tmp_path}"
    code, _, err = verb("db", "status", "--set", url, "--set", "database.attempts=1")
    assert code == 4
    assert err.count("\n") == 1
    assert "does not answer" in err
    assert "secret" not in err


@pytest.mark.parametrize("group", ["db", "queue", "refs", "calib"])
def test_every_command_explains_itself(group):
    import typer.main

    app = importlib.import_module(f"seechange_mpi.cli.{group}").app
    for command in typer.main.get_command(app).commands.values():
        assert command.help, command.name
        for p in command.params:
            assert p.help or p.name == "help", (group, command.name, p.name)

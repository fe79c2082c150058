"""The house itself: names promised in the README, the default configuration, start-up cost."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = ["seechange_mpi", "gpu_kernels", "io", "db", "conductor_client", "containers", "slurm", "tests", "setup.cfg"]


def test_readme_table_of_names_is_true():
    rows = dict(re.findall(r"^\| ([\w.]+) \| \[[^]]*\]\(([^)]+)\) \|$", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert list(rows) == NAMES
    for name, path in rows.items():
        assert (ROOT / path).exists(), f"{name}: {path} does not exist"


def test_files_of_tests_have_names_of_their_own():
    """pytest imports them by name: two of one name cannot be run together (``make test-full``)."""
    names = [p.name for p in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_benchmarks_import_what_is_there(path):
    """They are run by hand and checked by nothing else: what moves must move in them, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("seechange_mpi"):
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name) or importlib.util.find_spec(f"{node.module}.{name.name}"), name.name


def test_default_configuration_is_generated_from_the_declarations():
    from seechange_mpi.config.resolve import DEFAULT_FILE
    from seechange_mpi.pipeline.template import config_template

    assert DEFAULT_FILE.read_text() == config_template(), "run: seechange-mpi config template"
    assert (ROOT / "default_config.yaml").resolve() == DEFAULT_FILE.resolve()


def test_default_configuration_gives_the_default_pipeline():
    from seechange_mpi.config.resolve import Config
    from seechange_mpi.pipeline.top_level import Pipeline

    assert Pipeline().settings() == Pipeline.from_settings({}).settings()
    assert Config.get().source("detection.threshold") == "default"


def test_help_imports_nothing_heavy():
    code = ("import sys; from seechange_mpi.cli.main import main\n"
            "try: main(['--help'])\nexcept SystemExit: pass\n"
            "heavy = ('numpy', 'astropy', 'typer', 'mpi4py', 'sqlalchemy')\n"
            "sys.stderr.write(','.join(m for m in heavy if m in sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage: seechange-mpi" in done.stdout
    assert done.stderr == ""


def test_every_verb_explains_itself():
    from seechange_mpi.cli.main import VERBS

    for verb in VERBS:
        done = subprocess.run([sys.executable, "-m", "seechange_mpi.cli.main", verb, "--help"],
                              capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{verb}: {done.stderr}"
        assert "Usage: seechange-mpi" in done.stdout


def test_unknown_verb_is_usage_and_suggests():
    done = subprocess.run([sys.executable, "-m", "seechange_mpi.cli.main", "rnu"], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 2
    assert "Did you mean 'run'?" in done.stderr


def test_workers_do_not_import_plotting_or_the_database():
    code = ("import sys, seechange_mpi.pipeline.preload, seechange_mpi.mpi.worker\n"
            "print(','.join(m for m in ('matplotlib','sqlalchemy','psycopg','rich','typer','jinja2','galsim','pandas',"
            "'astropy.nddata','scipy.stats','scipy.signal','requests') if m in sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_workers_do_not_import_the_classes_of_rows_nor_does_a_commit():
    code = ("import sys, seechange_mpi.pipeline.preload, seechange_mpi.mpi.worker\n"
            "print(','.join(m for m in sys.modules if m.startswith(('sqlalchemy', 'seechange_mpi.db'))))\n"
            "import seechange_mpi.db.commit, seechange_mpi.db.badness\n"
            "print(','.join(m for m in sys.modules if m.startswith(('sqlalchemy.orm', 'seechange_mpi.db.models'))))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_rank_imports_no_numerics_before_it_forks():
    """Only the nursery does, after the fork: a rank that passes messages stays small."""
    code = ("import sys, seechange_mpi.mpi.worker\n"
            "print(','.join(m for m in ('numpy','scipy','astropy','h5py','pydantic') if m in sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""

"""The command line against a test's own database, as a person types it."""

import subprocess
import sys

from surveys import run_cli


class Verbs:
    """Runs verbs; gives exit code, output and errors."""

    def __init__(self, url, root, capsys):
        self.settings = ["--set", f"database.url={url}", "--set", f"paths.root={root}", "--set", "database.attempts=1"]
        self.capsys = capsys

    def __call__(self, *args):
        self.capsys.readouterr()
        code = run_cli(*args, *self.settings)
        said = self.capsys.readouterr()
        return code, said.out, said.err

    def refused(self, *args):
        """Run a verb that must refuse in one line, without a traceback; return exit code and line."""
        code, _, err = self(*args)
        assert code in (2, 4), f"{args}: {code}"
        assert err.startswith("error: "), err
        assert err.count("\n") == 1, err
        return code, err

    def start(self, *args):
        """Start a verb as a process of its own."""
        return subprocess.Popen([sys.executable, "-m", "seechange_mpi.cli.main", *map(str, args), *self.settings],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

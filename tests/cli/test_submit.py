"""Batch scripts: what is written is valid bash and says what was asked."""

import subprocess

import pytest

from seechange_mpi.cli.submit import load_site, render_job
from seechange_mpi.model.errors import ConfigError


def test_script_is_valid_bash_and_names_what_was_asked(tmp_path):
    script = render_job("generic-slurm", ["a b.fits"], 5, "logs", str(tmp_path / "my config.yaml"))
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert "#SBATCH --ntasks=5" in script
    assert "a b.fits'" in script
    assert f"SEECHANGE_CONFIG='{tmp_path}/my config.yaml'" in script
    assert "account" not in script


def test_own_site_file(tmp_path):
    site = tmp_path / "mine.yaml"
    site.write_text("name: mine\naccount: m1\nsetup: ['module load x']\n")
    script = render_job(str(site), [], None, "logs", None)
    assert "#SBATCH --account=m1\n" in script
    assert "module load x\n" in script
    assert script.rstrip().endswith("exec srun seechange-mpi run")


def test_unknown_site_and_key(tmp_path):
    with pytest.raises(ConfigError, match="there are generic-slurm"):
        load_site("nowhere")
    site = tmp_path / "bad.yaml"
    site.write_text("acount: m1\n")
    with pytest.raises(ConfigError, match="acount"):
        load_site(str(site))

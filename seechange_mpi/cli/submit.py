"""``seechange-mpi submit``: write a batch job for a Slurm site and hand it to sbatch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from seechange_mpi.cli.common import ConfigOption


def command(
    exposures: Annotated[list[str] | None, typer.Argument(help="Exposures; none = work on the queue.")] = None,
    site: Annotated[str, typer.Option("--site", help="A shipped site or your own YAML file.")] = "generic-slurm",
    ranks: Annotated[int | None, typer.Option("--ranks", help="MPI ranks; default: the site's.")] = None,
    log_dir: Annotated[str, typer.Option("--log-dir", help="Folder of the job's log.")] = "logs",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the job script and stop.")] = False,
    config: ConfigOption = None,
) -> None:
    """Submit one batch job that processes exposures with `srun`, one MPI rank per CCD.

    Example: seechange-mpi submit --site generic-slurm --config night.yaml --dry-run
    """
    import shutil
    import subprocess

    from seechange_mpi.model.errors import ConfigError

    script = render_job(site, exposures or [], ranks, log_dir, config)
    if dry_run:
        typer.echo(script, nl=False)
        return
    if shutil.which("sbatch") is None:
        raise ConfigError("sbatch is not on PATH: submit from a login node of the cluster, or use --dry-run")
    Path(log_dir).mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["sbatch"], input=script, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise ConfigError(f"sbatch refused the job: {done.stderr.strip()}")
    typer.echo(done.stdout.strip())


def share_folder() -> Path:
    """Folder of the shipped Slurm files: beside the package in a checkout, else under the prefix."""
    import sys

    from seechange_mpi.model.errors import ConfigError

    for folder in (Path(__file__).parents[2] / "slurm", Path(sys.prefix) / "share" / "seechange-mpi" / "slurm"):
        if (folder / "job.sbatch.j2").is_file():
            return folder
    raise ConfigError("the shipped Slurm templates are missing; reinstall seechange-mpi")


def load_site(name: str) -> dict[str, Any]:
    """Read a site file; unknown keys are errors."""
    import yaml

    from seechange_mpi.model.errors import ConfigError

    folder = share_folder() / "sites"
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise ConfigError(f"no site '{name}': there are {known}; or give the path of a YAML file")
    defaults: dict[str, Any] = yaml.safe_load((folder / "generic-slurm.yaml").read_text())
    given: dict[str, Any] = yaml.safe_load(path.read_text()) or {}
    unknown = set(given) - set(defaults)
    if unknown:
        raise ConfigError(f"{path}: unknown keys {', '.join(sorted(unknown))}; there are: {', '.join(defaults)}")
    return defaults | given


def render_job(site: str, exposures: list[str], ranks: int | None, log_dir: str, config: str | None) -> str:
    """Return the text of the batch script."""
    import shlex

    import jinja2

    values = load_site(site)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string((share_folder() / "job.sbatch.j2").read_text())
    files = [shlex.quote(str(Path(e).absolute())) for e in exposures]
    file = shlex.quote(str(Path(config).absolute())) if config else '"${SEECHANGE_CONFIG:-}"'
    return template.render(site=values, ranks=ranks or values["ranks"], log_dir=log_dir, config=file,
                           command=" ".join(["seechange-mpi run", *files]))

"""``seechange-mpi demo``: a small survey from raw pixels to objects, judged against the truth."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from seechange_mpi.simulate.compare import Comparison

LIMITS = {"zero point": 0.02, "astrometry": 50.0, "completeness": 0.9, "purity": 0.9}
"""|Δzp| [mag], rms [mas], and least fractions that the demo must reach."""


def command(
    directory: Annotated[Path, typer.Option("--dir", help="Folder of the demo.")] = Path("demo"),
    ranks: Annotated[int, typer.Option("-n", "--ranks", min=1, help="MPI processes of each run.")] = 3,
    seed: Annotated[int, typer.Option("--seed", help="Another seed, another sky.")] = 1,
) -> int:
    """Simulate three epochs, make a reference of the first, process the others, compare with the truth.

    Every command is printed before it runs, so that you can repeat it with your own exposures.
    A second demo finds nothing left to do. Fails unless the zero points, positions, completeness and
    purity are as good as they must be.
    """
    started = time.monotonic()
    config = directory / "seechange.yaml"
    raw = directory / "raw"
    if not config.is_file() or len(list(raw.glob("*.fits"))) < 3:
        _call("simulate", str(directory), "--seed", str(seed))
    exposures = sorted(str(p) for p in raw.glob("*.fits"))
    common = ("--config", str(config))
    worst = _call("run", "-n", str(ranks), *common, exposures[0])
    if worst == 0:
        worst = _call("refs", "add", *common, Path(exposures[0]).stem)
    if worst == 0:
        worst = _call("run", "-n", str(ranks), *common, *exposures[1:])
    if worst != 0:
        typer.echo(f"\nthe demo stopped: the command above ended with exit code {worst}", err=True)
        return worst
    ok = _judge(directory, exposures)
    typer.echo(f"\n{time.monotonic() - started:.0f} s.  Look at:  {directory}/work/bundles/*/*.html")
    return 0 if ok else 3


def _call(*args: str) -> int:
    typer.echo(f"\n$ seechange-mpi {shlex.join(args)}")
    sys.stdout.flush()
    return subprocess.run([sys.executable, "-m", "seechange_mpi.cli.main", *args], check=False).returncode


def _judge(directory: Path, exposures: list[str]) -> bool:
    from astropy.table import Table

    from seechange_mpi.config.resolve import Config
    from seechange_mpi.db.engine import session
    from seechange_mpi.simulate.compare import Comparison, compare_exposure, variables_as_objects

    config = Config(directory / "seechange.yaml")
    truths = [Table.read(directory / "truth" / f"{Path(e).stem}.ecsv") for e in exposures]
    comparison = Comparison()
    with session(config) as conn:
        for exposure, truth in zip(exposures[1:], truths[1:], strict=True):
            stem = Path(exposure).stem
            bundles = sorted((config.bundles / stem).glob(f"{stem}_*.h5"), key=lambda p: p.stat().st_mtime)
            compare_exposure(bundles[-1], truth, truths[0], comparison)
        rows: list[Any] = conn.execute(
            "SELECT object_id::text, ra, dec FROM measurements WHERE NOT is_bad").fetchall()
    single, seen = variables_as_objects(truths[1:], rows)
    return _verdict(comparison, single, seen)


def _verdict(c: Comparison, single: int, seen: int) -> bool:
    import numpy as np

    lines = [
        ("zero-point error (worst section)", f"{c.worst_zp_error:+.4f} mag", f"within {LIMITS['zero point']}",
         abs(c.worst_zp_error) <= LIMITS["zero point"]),
        ("astrometric rms per axis", f"{c.astrometric_rms_mas:.1f} mas", f"at most {LIMITS['astrometry']:.0f}",
         c.astrometric_rms_mas <= LIMITS["astrometry"]),
        ("completeness at S/N >= 10", f"{c.completeness:.3f} ({c.found} of {c.asked})",
         f"at least {LIMITS['completeness']}", c.completeness >= LIMITS["completeness"]),
        ("purity of unflagged measurements", f"{c.purity:.3f} ({c.true} of {c.kept})",
         f"at least {LIMITS['purity']}", c.purity >= LIMITS["purity"]),
        ("difference flux / truth (median)", f"{np.median(c.flux_ratios) if c.flux_ratios else float('nan'):.3f}",
         "", True),
        ("variables seen in both epochs", f"{single} of {seen} are one object", "all", seen > 0 and single == seen),
    ]
    typer.echo("\ncompared with the truth")
    for name, value, limit, ok in lines:
        typer.echo(f"  {name:<34}{value:<24}{limit:<16}{'ok' if ok else 'NOT REACHED'}")
    for kind, items in (("missed", c.missed), ("false", c.false)):
        for item in items[:8]:
            typer.echo(f"    {kind}: {item}")
    return all(line[3] for line in lines)

"""``seechange-mpi astrometry``: solve source lists without images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seechange_mpi.cli.common import ConfigOption, SetOption, load_config
from seechange_mpi.cli.main import explain
from seechange_mpi.model.errors import SeeChangeError


def command(
    lists: Annotated[list[Path], typer.Argument(help="FITS or LDAC tables of sources, a WCS in their header.")],
    catalog: Annotated[str | None, typer.Option("--catalog", help="Star catalogue; overrides catalog.path.")] = None,
    processes: Annotated[int, typer.Option("-n", "--processes", min=1, help="Start this many MPI processes.")] = 1,
    out: Annotated[Path, typer.Option("--out", help="Folder of the .wcs files and astrometry.ecsv.")] = Path(
        "astrometry"),
    size: Annotated[str | None, typer.Option("--size", help="Pixels of the images, e.g. 2048x4176, where the header "
                                                            "does not tell them.")] = None,
    mjd: Annotated[float | None, typer.Option("--mjd", help="Date of the exposure, where the header lacks it.")] = None,
    origin: Annotated[int | None, typer.Option("--origin", min=0, max=1, help="Number of the first pixel; without it "
                                               "1 for columns named …_IMAGE, else 0.")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> int:
    """Find the astrometric solution of source lists, without images.

    \b
    One list:        seechange-mpi astrometry --catalog gaia.fits stars.ldac
    An exposure:     seechange-mpi astrometry -n 4 -c config.yaml --out solved/ ccd_*.fits

    Lists that are refused by themselves are tried again near the solution of their neighbours. Prints the
    table of residuals; writes a .wcs header file for every solution, and astrometry.ecsv with all figures. Parameters
    are those of extraction.wcs. Exit code 0: all solved, 3: some refused, 4: all refused.
    """
    from seechange_mpi.mpi.comm import announced_size, get_comm
    from seechange_mpi.mpi.launcher import introduce, is_launched, launch, leave

    resolved = load_config(config, set_)
    if processes > 1 and announced_size() is None:
        import sys

        from seechange_mpi.cli.run import _without_n

        return launch(processes, ["astrometry", *_without_n(sys.argv[2:])], resolved.settings.run.mpiexec)
    comm = get_comm()
    introduce(comm.rank)
    if comm.rank != 0:
        from seechange_mpi.mpi.share_out import serve_or_abort
        from seechange_mpi.pipeline.list_astrometry import solve_list

        serve_or_abort(comm, solve_list)
        return 0
    try:
        code = _solve(resolved, comm, lists, catalog, out, size, mjd, origin)
    except SeeChangeError as err:
        if not is_launched():
            raise
        code = explain(err)
    finally:
        from seechange_mpi.mpi.scatter import stop_workers

        stop_workers(comm)
    return leave(code)


def _solve(resolved: object, comm: object, lists: list[Path], catalog: str | None, out: Path, size: str | None,
           mjd: float | None, origin: int | None) -> int:
    from dataclasses import replace

    from seechange_mpi.config.resolve import Config
    from seechange_mpi.io.source_list import ListSettings
    from seechange_mpi.model.errors import ConfigError
    from seechange_mpi.mpi.astrometry import exit_code, residual_table, solve_lists, write_solutions
    from seechange_mpi.mpi.catalogs import catalog_spec, shared_excerpt
    from seechange_mpi.mpi.comm import Communicator
    from seechange_mpi.pipeline.list_astrometry import list_cones, list_tasks
    from seechange_mpi.pipeline.top_level import Pipeline

    assert isinstance(resolved, Config)
    communicator: Communicator = comm  # type: ignore[assignment]
    spec = catalog_spec(resolved, catalog)
    if spec is None:
        raise ConfigError("no catalogue: name one with --catalog, catalog.path or catalog.url")
    calibrator = Pipeline.from_settings(resolved.steps()).astrocalibrator
    tasks = list_tasks(lists, ListSettings(_size(size), mjd, origin), calibrator.pars.model_dump(), spec)
    if not spec["path"]:
        # a service is asked once
        spec = shared_excerpt(spec, list_cones(tasks, (60.0 + calibrator.catalog_margin_arcsec) / 3600.0), resolved)
        tasks = [replace(t, catalog=spec) for t in tasks]
    results = solve_lists(communicator, tasks)
    typer.echo(residual_table(results))
    table = write_solutions(results, out)
    solved = sum(r.wcs is not None for r in results)
    typer.echo(f"{solved} of {len(results)} solved; {table}")
    return int(exit_code(results))


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    nx, _, ny = text.lower().partition("x")
    if not (nx.isdigit() and ny.isdigit() and int(nx) and int(ny)):
        raise typer.BadParameter(f"--size {text}: expected NXxNY, such as 2048x4096")
    return int(nx), int(ny)

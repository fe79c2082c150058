"""``seechange-mpi db``: the science database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from seechange_mpi.cli.common import ConfigOption, SetOption, load_config

app = typer.Typer(help="The science database: a private PostgreSQL unless database.url names one.",
                  no_args_is_help=True, rich_markup_mode=None, add_completion=False)


@app.command()
def init(config: ConfigOption = None, set_: SetOption = None) -> None:
    """Make the tables, or bring them up to date. Every other verb does this by itself."""
    from seechange_mpi.db.engine import session
    from seechange_mpi.db.migrate import current

    resolved = load_config(config, set_)
    with session(resolved) as conn:
        typer.echo(f"the schema is at revision {current(conn)}")


@app.command()
def start(config: ConfigOption = None, set_: SetOption = None) -> None:
    """Start the embedded server and keep it running until 'db stop'; print its URL."""
    from seechange_mpi.db.server import EmbeddedServer

    resolved = load_config(config, set_)
    server = EmbeddedServer(resolved.root, resolved.settings.database.bindir)
    server.start()
    server.keep.touch()
    typer.echo(server.url)


@app.command()
def stop(config: ConfigOption = None, set_: SetOption = None) -> None:
    """Stop the embedded server."""
    from seechange_mpi.db.server import EmbeddedServer

    resolved = load_config(config, set_)
    server = EmbeddedServer(resolved.root, resolved.settings.database.bindir)
    server.keep.unlink(missing_ok=True)
    was = server.is_running()
    server.stop()
    typer.echo("stopped" if was else "it was not running")


@app.command()
def status(config: ConfigOption = None, set_: SetOption = None) -> None:
    """Say where the database is, and what is in it."""
    from seechange_mpi.config.resolve import redact
    from seechange_mpi.db.engine import session
    from seechange_mpi.db.migrate import current
    from seechange_mpi.model.flags import badness_words

    resolved = load_config(config, set_)
    with session(resolved) as conn:
        version = conn.execute("SHOW server_version").fetchone()
        where = redact(resolved.settings.database.url)
        typer.echo(f"database {where}, PostgreSQL {version[0] if version else '?'}, schema {current(conn)}")
        for name in ("exposures", "images", "refs", "detections", "measurements", "objects", "deepscores", "reports"):
            row = conn.execute(f"SELECT count(*) FROM {name}").fetchone()
            typer.echo(f"  {name:<14}{row[0] if row else 0:>10}")
        bad: list[Any] = conn.execute("SELECT bit, count(*) FROM reports, generate_series(0, 62) bit "
                           "WHERE _bitflag & (1::bigint << bit) <> 0 GROUP BY bit ORDER BY bit").fetchall()
        for bit, n in bad:
            typer.echo(f"  sections with {badness_words(1 << int(bit))}: {n}")
        for state, n in conn.execute("SELECT state, count(*) FROM knownexposures GROUP BY state ORDER BY state"):
            typer.echo(f"  queue {state:<8}{n:>10}")


@app.command()
def commit(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles to commit.")],
    replace: Annotated[bool, typer.Option("--replace", help="Put other content in place of what is there.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Commit bundles; what is there already stays as it is. Rebuilds a database from bundles alone."""
    from seechange_mpi.db.commit import commit_bundle
    from seechange_mpi.db.engine import session
    from seechange_mpi.instruments.camera import load_camera
    from seechange_mpi.io.bundle import read_bundle

    resolved = load_config(config, set_)
    objects = resolved.settings.objects
    with session(resolved) as conn:
        for path in bundles:
            radius = objects.association_radius_arcsec
            if radius is None:
                instrument = read_bundle(path).config.get("camera", {}).get("name") or resolved.settings.camera.name
                radius = load_camera(instrument).association_radius_arcsec
            done = commit_bundle(conn, path, radius_arcsec=radius, replace=replace,
                                 tag=resolved.settings.run.provenance_tag, max_new_objects=objects.max_new_per_exposure)
            if done.unchanged:
                typer.echo(f"{path.name}: everything is there already")
            else:
                typer.echo(f"{path.name}: {done.inserted.get('images', 0)} images, "
                           f"{done.inserted.get('measurements', 0)} measurements, "
                           f"{done.inserted.get('objects', 0)} new objects in {sum(done.seconds.values()):.2f} s")

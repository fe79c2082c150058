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
    """Make the tables, or bring them up to date. Every other verb does this by itself.

    Where the server has the q3c extension, indexes for its searches are made as well; run this again on a database
    that gets q3c later. Commits wait meanwhile.
    """
    from seechange_mpi.db.engine import session
    from seechange_mpi.db.migrate import current
    from seechange_mpi.db.q3c import make_indexes

    resolved = load_config(config, set_)
    with session(resolved) as conn:
        typer.echo(f"the schema is at revision {current(conn)}")
        typer.echo(str(make_indexes(conn)))


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
    from seechange_mpi.db import q3c
    from seechange_mpi.db.engine import session
    from seechange_mpi.db.migrate import current
    from seechange_mpi.model.flags import badness_words

    resolved = load_config(config, set_)
    with session(resolved) as conn:
        version = conn.execute("SHOW server_version").fetchone()
        where = redact(resolved.settings.database.url)
        typer.echo(f"database {where}, PostgreSQL {version[0] if version else '?'}, schema {current(conn)}")
        typer.echo(f"  {q3c.state(conn)}")
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
    bundles: Annotated[list[Path] | None, typer.Argument(
        help="Bundles to commit; with --pending, folders to search (default: paths.bundles).")] = None,
    pending: Annotated[bool, typer.Option(
        "--pending", help="Find and commit the bundles that the database does not have.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Put other content in place of what is there.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> int:
    """Commit bundles; what is there already stays as it is. Rebuilds a database from bundles alone.

    With --pending the exit code is 4 if something pending could not be committed.
    """
    from seechange_mpi.db.crossmatch import AfterCommit
    from seechange_mpi.db.engine import server
    from seechange_mpi.db.pending import PendingCommits, commit_one, said
    from seechange_mpi.io.bundle import read_bundle
    from seechange_mpi.model.errors import ConfigError, ExitCode

    resolved = load_config(config, set_)
    if pending:
        from seechange_mpi.mpi.heartbeat import owner_is_gone, owner_name

        places = bundles or [resolved.bundles]
        for place in places if bundles else ():
            if not place.exists():
                raise ConfigError(f"{place}: no such file or folder; name a folder of bundles, or none for all")
        with server(resolved) as opened:
            whole = PendingCommits(resolved, opened, owner_name(), owner_is_gone, typer.echo).run(
                places, replace=replace)
        return int(ExitCode.OK if whole else ExitCode.EXPOSURE_FAILED)
    if not bundles:
        raise ConfigError("no bundle is named; name some, or --pending for all that the database does not have")
    with server(resolved) as opened, opened() as conn:
        match = AfterCommit(resolved, opened, lambda line: typer.echo(line, err=True))
        for path in bundles:
            typer.echo(f"{path.name}: {said(commit_one(conn, resolved, path, replace=replace))}")
            match(read_bundle(path).exposure.identifier)
    return int(ExitCode.OK)

"""Processes that commit bundles at the same time, and skies whose partition into objects is known."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
from made_bundles import Maker, exposure, tree, wcs_header

from seechange_mpi.model.provenance import canonical_json

RADIUS = 2.0
"""Largest distance of a measurement to its object [arcsec]."""
PLACES = [(0.0, 10.0), (150.0, 2.2), (77.0, 89.995), (359.999, -5.0), (45.0, 41.8103), (200.0, -89.99), (270.0, 0.0)]
"""Fields: across RA 0, at the poles, and where sky cells meet."""

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["pytest", "astropy.wcs.utils", "requests", "seechange_mpi.db.commit",
                                "seechange_mpi.db.excerpts", "seechange_mpi.io.bundle", "seechange_mpi.mpi.catalogs"])


def sky(place, east, north):
    """RA, Dec [deg] of offsets [arcsec] in the tangent plane of a place."""
    a, d = np.deg2rad(place)
    x, y = np.deg2rad(np.asarray(east) / 3600), np.deg2rad(np.asarray(north) / 3600)
    v = (np.outer(np.ones_like(x), [np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])
         + np.outer(x, [-np.sin(a), np.cos(a), 0]) + np.outer(y, [-np.sin(d) * np.cos(a), -np.sin(d) * np.sin(a),
                                                                  np.cos(d)]))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    return np.degrees(np.arctan2(v[:, 1], v[:, 0])) % 360, np.degrees(np.arctan2(v[:, 2], np.hypot(v[:, 0], v[:, 1])))


def sections_of(place, epoch, k, *, size=100.0, n=13, each=12):
    """Sections of exposure `k` of a field: sources 5 radii apart or more, measured within 0.4 radii of their places.

    Exposures are shifted against each other, and the two sections of every fourth one overlap; a source is measured
    once in an exposure, `each` of them in a section. In every second epoch a third of the sources is missing, so that
    the next one founds objects too.
    """
    rng = np.random.default_rng([epoch, k])
    field = np.random.default_rng(7)
    grid = (np.arange(n) - n / 2) * 8 * RADIUS
    east, north = (g.ravel() + field.uniform(-1.5, 1.5, n * n) * RADIUS for g in np.meshgrid(grid, grid))
    there = np.ones(n * n, bool)
    if epoch % 2 == 0:
        there[::3] = False
    shift = rng.uniform(-20, 20, 2)
    angle, off = rng.uniform(0, 2 * np.pi, n * n), rng.uniform(0, 0.4 * RADIUS, n * n)
    ra, dec = sky(place, east + off * np.cos(angle), north + off * np.sin(angle))
    out = {}
    for name, middle in (("S1", -size / 4), ("S2", size / 4))[:2 if k % 4 == 0 else 1]:
        inside = there & (np.abs(east - middle - shift[0]) < size / 2) & (np.abs(north - shift[1]) < size / 2)
        chosen = rng.choice(np.flatnonzero(inside), min(each, inside.sum()), replace=False)
        there[chosen] = False
        (centre_ra,), (centre_dec,) = sky(place, [middle + shift[0]], [shift[1]])
        out[name] = {"ra": centre_ra, "dec": centre_dec, "at": np.stack([ra[chosen], dec[chosen]], axis=-1)}
    return out


def place_of(number):
    """Two epochs of each field in turn, then fields a degree further."""
    ra, dec = PLACES[number // 2 % len(PLACES)]
    further = number // (2 * len(PLACES))
    return (ra, dec - further) if dec > 0 else (ra, dec + further)


def like(template, path, name, mjd, sections, extraction):
    """Write another exposure with as many measurements as a bundle has: its file, with other texts and positions."""
    path.parent.mkdir(parents=True)
    shutil.copyfile(template, path)
    records = tree(extraction)
    with h5py.File(path, "r+") as f:
        f.attrs["exposure"], f.attrs["mjd"] = name, mjd
        e = f["exposure"]
        e.attrs["info"] = json.dumps(json.loads(e.attrs["info"]) | {"identifier": name, "mjd": mjd,
                                                                    "path": exposure(name).path})
        for k, r in enumerate(sorted(records.values(), key=lambda r: r.id)):
            f["provenance"][k] = (r.id, r.process, r.code_version, canonical_json(dict(r.parameters)),
                                  json.dumps(list(r.upstream_ids)))
        for section, s in sections.items():
            g = f["sections"][section]
            g.attrs["provenance_ids"] = json.dumps({p: r.id for p, r in records.items()})
            for part in ("image", "sub"):
                g.attrs[f"{part}_hash"] = f"{part} of {name} {section}"
            g["wcs"].attrs["header"] = wcs_header(s["ra"], s["dec"])
            g["image_meta"].attrs["mjd"] = mjd
            rows = g["measurements"][...]
            rows["ra"], rows["dec"] = s["at"].T
            g["measurements"][...] = rows
    return path


class Exposures:
    """Makes the bundles of one client."""

    def __init__(self, folder, k):
        self.folder, self.k = Path(folder), k
        os.fsync = lambda _file: None
        self.template = Maker(self.folder / f"template{k}")(sections_of((10.0, 0.0), 1, k), f"template{k}")

    def __call__(self, number, prefix="r"):
        """Exposure `k` of a round; the provenances of every round are new."""
        name = f"{prefix}{number}e{self.k}"
        return like(self.template, self.folder / name / f"{name}.h5", name, 60000.0 + number + self.k / 100,
                    sections_of(place_of(number), number, self.k), number)


def round_client(url, folder, k, barrier, pipe):
    """Commit one exposure in each of the rounds that come, all clients at the same moment; answer with the outcome."""
    from seechange_mpi.db.engine import connect

    exposures = Exposures(folder, k)
    with connect(url) as conn:
        while (number := pipe.recv()) is not None:
            path = exposures(number)
            barrier.wait(120)
            pipe.send((path, *commit(conn, path, number)))


def serial_client(url, pipe):
    """Commit what comes, one after the other; answer with the outcome."""
    from seechange_mpi.db.engine import connect

    with connect(url) as conn:
        while (job := pipe.recv()) is not None:
            pipe.send(commit(conn, *job))


def commit(conn, path, number):
    """Return what was inserted, and what went wrong."""
    from seechange_mpi.db.commit import commit_bundle

    try:
        return commit_bundle(conn, path, radius_arcsec=RADIUS, tag=f"round {number}").inserted, ""
    except Exception as err:  # noqa: BLE001 - the test says what it was
        return {}, f"{type(err).__name__}: {err}"


def list_client(url, paths, tag, pipe):
    """Commit bundles one after the other; say the name of each before and after it, or what went wrong."""
    from seechange_mpi.db.commit import commit_bundle
    from seechange_mpi.db.engine import connect

    try:
        with connect(url) as conn:
            for path in paths:
                pipe.send(("begin", path))
                commit_bundle(conn, path, radius_arcsec=RADIUS, tag=tag)
                pipe.send(("done", path))
        pipe.send(("end", None))
    except Exception as err:  # noqa: BLE001 - the test says what it was
        pipe.send((type(err).__name__, str(err)))


class Client:
    """A process with a pipe to it."""

    def __init__(self, target, *args):
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=target, args=(*args, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.heard = []

    def told(self):
        """Everything the process has said; it must end."""
        try:
            while True:
                assert self.pipe.poll(100), "a client does not end"
                self.heard.append(self.pipe.recv())
        except EOFError:
            self.join()
            return self.heard

    def join(self, timeout_s=60):
        self.process.join(timeout_s)
        assert not self.process.is_alive(), "a client does not end"


def wait_for_commits(clients, n):
    """Until some clients (`list_client`) have said of `n` bundles that they are committed."""
    while sum(word == "done" for c in clients for word, _ in c.heard) < n:
        ready = multiprocessing.connection.wait([c.pipe for c in clients], 100)
        assert ready, "a commit does not end"
        for c in clients:
            if c.pipe in ready:
                c.heard.append(c.pipe.recv())

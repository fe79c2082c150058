"""Excerpts give what the catalogue gives, from the cache or fresh; the service's protocol, retries and refusals."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from astropy.table import Table

from seechange_mpi.io import catalog_http
from seechange_mpi.io.catalog import read_catalog
from seechange_mpi.io.catalog_excerpt import bounding_cone, covers, make_excerpt
from seechange_mpi.io.catalog_http import bounding_box, fetch_cone
from seechange_mpi.io.star_file import columns_of, sorted_by_declination
from seechange_mpi.model.errors import BadInput, TransientError
from seechange_mpi.pipeline.wcs_tools import separation_deg


def table(n=4000, seed=2):
    rng = np.random.default_rng(seed)
    pm = rng.normal(0, 5, n)
    pm[::7] = np.nan
    return Table({"ra": (rng.uniform(-6, 6, n)) % 360, "dec": rng.uniform(-6, 6, n), "pmra": pm, "pmdec": pm,
                  "pmra_error": np.abs(pm) / 30, "phot_g_mean_mag": rng.uniform(12, 21, n)})


@pytest.fixture
def spec(tmp_path):
    table().write(tmp_path / "stars.fits")
    return {"path": str(tmp_path / "stars.fits"), "max_mag": 20.0}


def same(a, b):
    a, b = columns_of(sorted_by_declination(a)), columns_of(sorted_by_declination(b))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_an_excerpt_gives_the_stars_of_the_catalogue(spec, tmp_path):
    got = make_excerpt(spec, (359.9, 0.5, 2.0), tmp_path / "cache")
    for cone in ((359.9, 0.5, 2.0), (0.3, 1.0, 0.4), (358.5, 0.0, 0.2)):
        same(read_catalog(got, *cone), read_catalog(spec, *cone))
    assert read_catalog(got, 0.3, 1.0, 0.4).rows_in_file == 4000
    assert list((tmp_path / "cache").iterdir()) == [tmp_path / "cache" / got["path"].rpartition("/")[2]]


def test_the_identity_is_the_same_from_a_larger_excerpt(spec, tmp_path):
    cone = (0.2, 0.5, 1.0)
    fresh = make_excerpt(spec, cone, tmp_path / "one")
    large = make_excerpt(spec, (0.0, 0.0, 3.0), tmp_path / "two")
    cached = make_excerpt(spec, cone, tmp_path / "two")
    assert cached["path"] == large["path"]
    assert cached["identity"] == fresh["identity"] != large["identity"]
    same(read_catalog(cached, *cone), read_catalog(fresh, *cone))


def test_a_changed_catalogue_or_limit_is_noticed(spec, tmp_path):
    cone = (0.2, 0.5, 1.0)
    before = make_excerpt(spec, cone, tmp_path / "cache")
    assert make_excerpt(spec | {"max_mag": 18.0}, cone, tmp_path / "cache")["identity"] != before["identity"]
    changed = table()
    changed["ra"][separation_deg(changed["ra"], changed["dec"], 0.2, 0.5) < 0.3] += 1e-7
    changed.write(spec["path"], overwrite=True)
    after = make_excerpt(spec, cone, tmp_path / "cache")
    assert after["identity"] != before["identity"]
    elsewhere = table()
    elsewhere["ra"][separation_deg(elsewhere["ra"], elsewhere["dec"], 5, 5) < 0.5] += 1e-7
    elsewhere.write(spec["path"], overwrite=True)
    assert make_excerpt(spec, cone, tmp_path / "cache")["identity"] == before["identity"], "the field has not changed"


def test_a_damaged_excerpt_is_made_anew_and_a_section_outside_reads_the_catalogue(spec, tmp_path):
    cone = (0.2, 0.5, 1.0)
    got = make_excerpt(spec, cone, tmp_path / "cache")
    with open(got["path"], "r+b") as f:
        f.truncate(6000)
    with pytest.warns(UserWarning, match="made anew"):
        again = make_excerpt(spec, cone, tmp_path / "cache")
    assert again == got
    with pytest.warns(UserWarning, match="reaches outside"):
        outside = read_catalog(got, 2.0, 0.5, 1.0)
    same(outside, read_catalog(spec, 2.0, 0.5, 1.0))
    with pytest.raises(BadInput, match="one that covers"):
        read_catalog({"path": got["path"]}, 2.0, 0.5, 1.0)


def test_cones_are_bounded():
    rng = np.random.default_rng(0)
    for ra0, dec0 in ((0.0, 0.0), (359.99, 60.0), (10.0, 89.9), (200.0, -90.0)):
        cones = [((ra0 + rng.uniform(-1, 1)) % 360, float(np.clip(dec0 + rng.uniform(-1, 1), -90, 90)), 0.2)
                 for _ in range(8)]
        whole = bounding_cone(cones)
        assert all(covers(whole, c) for c in cones)
        assert whole[2] < 3.5
    assert not covers((0, 0, 1), (1.5, 0, 0.2))


@pytest.mark.parametrize(("ra", "dec"), [(10.0, 20.0), (0.1, -30.0), (359.9, 70.0), (50.0, 89.0), (123.0, -89.9)])
def test_the_box_holds_the_cone(ra, dec):
    low, high, south, north = bounding_box(ra, dec, 1.5)
    rng = np.random.default_rng(1)
    angle = rng.uniform(0, 2 * np.pi, 3000)
    d, r0 = np.radians(1.5), np.radians(dec)
    dec_edge = np.arcsin(np.sin(r0) * np.cos(d) + np.cos(r0) * np.sin(d) * np.cos(angle))
    ra_edge = ra + np.degrees(np.arctan2(np.sin(angle) * np.sin(d) * np.cos(r0),
                                         np.cos(d) - np.sin(r0) * np.sin(dec_edge)))
    width = (high - low) % 360.0 or 360.0
    assert (((ra_edge - low) % 360.0) <= width).all()
    assert south <= np.degrees(dec_edge).min()
    assert north >= np.degrees(dec_edge).max()


class Service(BaseHTTPRequestHandler):
    """A stub of the Gaia service; `script` holds what the next requests are answered with."""

    stars = table()
    script: list = []
    asked: list = []

    def do_POST(self):
        type(self).asked.append(self.path)
        if type(self).script:
            status, body = type(self).script.pop(0)
        else:
            words = self.path.strip("/").split("/")
            assert words[0] == "gaiarect"
            minra, maxra, mindec, maxdec, *mags = (float(w) for w in words[1:])
            t = self.stars
            inside = (t["dec"] >= mindec) & (t["dec"] <= maxdec)
            assert minra <= maxra
            inside &= (t["ra"] >= minra) & (t["ra"] <= maxra)
            if mags:
                inside &= t["phot_g_mean_mag"] <= mags[0]
            rows = t[inside]
            status = 200
            body = json.dumps({n: [None if not np.isfinite(v) else float(v) for v in rows[n]] for n in t.colnames}
                              | {"designation": ["x"] * len(rows)})
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_args):
        pass


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setattr(catalog_http, "_WAIT_S", 0.01)
    Service.script, Service.asked = [], []
    server = HTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_the_service_gives_the_stars_of_the_file(service, spec, tmp_path):
    asked = {"url": service, "max_mag": 20.0}
    for cone in ((0.05, 1.0, 0.8), (3.0, -2.0, 0.5), (359.0, 0.0, 1.0)):
        same(read_catalog(asked, *cone), read_catalog(spec, *cone))
    count = len(Service.asked)
    got = make_excerpt(asked, (0.05, 1.0, 0.8), tmp_path / "cache")
    assert make_excerpt(asked, (0.1, 1.0, 0.3), tmp_path / "cache")["path"] == got["path"]
    assert len(Service.asked) == count + 2, "one for each side of right ascension 0; the second exposure asks nobody"
    assert got["identity"].startswith("http://127")
    same(read_catalog(got, 0.1, 1.0, 0.3), read_catalog(spec, 0.1, 1.0, 0.3))


def test_the_service_is_asked_again_and_given_up(service):
    Service.script = [(500, "oops"), (503, "busy")]
    assert len(fetch_cone({"url": service}, 1.0, 1.0, 0.5)) > 5
    assert len(Service.asked) == 3
    Service.script = [(500, "oops")] * 9
    with pytest.raises(TransientError, match=r"in 2 attempts: status 500 oops; try later, or set catalog\.path"):
        fetch_cone({"url": service, "url_attempts": 2}, 1.0, 1.0, 0.5)
    Service.script = [(404, "no such place")]
    with pytest.raises(BadInput, match="404"):
        fetch_cone({"url": service}, 1.0, 1.0, 0.5)
    Service.script = [(200, "<html>")]
    with pytest.raises(BadInput, match="JSON"):
        fetch_cone({"url": service}, 1.0, 1.0, 0.5)
    Service.script = [(200, '{"ra": [1.0], "dec": [1.0, 2.0]}')]
    with pytest.raises(BadInput, match="one length"):
        fetch_cone({"url": service}, 1.0, 1.0, 0.5)
    Service.script = [(200, "[]")]
    assert len(fetch_cone({"url": service}, 1.0, 1.0, 0.5)) == 0
    with pytest.raises(TransientError, match="no connection"):
        fetch_cone({"url": "http://127.0.0.1:9", "url_attempts": 2, "url_timeout_s": 1.0}, 1.0, 1.0, 0.5)

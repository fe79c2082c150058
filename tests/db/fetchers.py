"""Processes that need the same stars or register the same frames at once, and a Gaia service that counts questions."""

from __future__ import annotations

import json
import random
import threading
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np


class Service:
    """Stars all over a band of the sky; answers wait for `answering`.

    Attributes
    ----------
    asked : paths of the questions.
    """

    def __init__(self, n=6000):
        rng = np.random.default_rng(3)
        self.stars = {"ra": rng.uniform(0, 360, n), "dec": np.degrees(np.arcsin(rng.uniform(-1, 1, n))),
                      "phot_g_mean_mag": rng.uniform(12, 20, n), "phot_bp_mean_mag": rng.uniform(12, 20, n)}
        self.asked, self.answering = [], threading.Event()
        self.answering.set()

    def answer(self, path):
        """The stars of a box, given as by SeeChange's protocol."""
        self.asked.append(path)
        minra, maxra, mindec, maxdec, *mags = (float(w) for w in path.strip("/").split("/")[1:])
        assert minra <= maxra
        s = self.stars
        inside = (s["ra"] >= minra) & (s["ra"] <= maxra) & (s["dec"] >= mindec) & (s["dec"] <= maxdec)
        if mags:
            inside &= s["phot_g_mean_mag"] <= mags[0]
        self.answering.wait(60)
        return json.dumps({k: v[inside].tolist() for k, v in s.items()})

    @contextmanager
    def running(self):
        """Yield the URL."""
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = service.answer(self.path).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        self.answering.set()
        server.shutdown()
        server.server_close()


def fetch_client(config, url, cone, barrier, pipe):
    """Get the excerpt of a region as a run does; answer with its file and the identity of its stars."""
    from seechange_mpi.config.resolve import Config
    from seechange_mpi.db.engine import connect
    from seechange_mpi.mpi.catalogs import catalog_spec, shared_excerpt

    resolved = Config(config)
    spec = catalog_spec(resolved)
    if barrier is not None:
        barrier.wait(60)
    pipe.send("begin")
    try:
        made = shared_excerpt(spec, [cone], resolved, partial(connect, url))
    except Exception as err:  # noqa: BLE001 - the test says what it was
        pipe.send(f"{type(err).__name__}: {err}")
        return
    pipe.send((made["path"], made["identity"]))


def frames_client(url, folder, k, rounds, barrier, pipe):
    """Write and register the same frames as all others, in an order of its own; then give them the same new dates."""
    from seechange_mpi.calibration.task import CalibrationTask, Made
    from seechange_mpi.calibration.write import write_frame
    from seechange_mpi.db.calibrators import add_calibrators
    from seechange_mpi.db.engine import connect
    from seechange_mpi.instruments.camera import load_camera
    from seechange_mpi.model.calibration import CalibratorFrame
    from seechange_mpi.model.provenance import make_record

    camera = load_camera("simulated")
    order = random.Random(k)
    with connect(url) as conn:
        for number in range(rounds):
            frames = []
            barrier.wait(60)
            for n in range(6):
                section = camera.section_ids[n % len(camera.section_ids)]
                task = CalibrationTask("bias", camera, section, "", "", (), {}, {}, {}, "general", None, None,
                                       str(folder), str(folder))
                made = Made(np.full((20, 20), number + n / 10, np.float32), "adu", {"noise": 1.0}, {})
                record = make_record("calibration", {"round": number, "frame": n}, [])
                path, digest = write_frame(task, made, record.id, {})
                frames.append(CalibratorFrame("bias", "general", "", camera.name, section, "", str(path), digest,
                                              60000.0, None, record, {"noise": 1.0}))
            order.shuffle(frames)
            try:
                add_calibrators(conn, frames)
                barrier.wait(60)
                dated = [CalibratorFrame("bias", "general", "", camera.name, f.section_id, "", f.path, f.sha256,
                                         60000.0 + k, None, f.provenance, {"noise": 1.0}) for f in frames]
                add_calibrators(conn, dated)
            except Exception as err:  # noqa: BLE001 - the test says what it was
                pipe.send(f"{type(err).__name__}: {err}")
                barrier.abort()
                return
    pipe.send("end")

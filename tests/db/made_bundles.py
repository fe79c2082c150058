"""Small bundles with chosen positions, written by the real writer."""

from __future__ import annotations

import numpy as np

from seechange_mpi.io.bundle import write_bundle
from seechange_mpi.io.shard import write_shard
from seechange_mpi.model import products as pr
from seechange_mpi.model.exposure import ExposureInfo
from seechange_mpi.model.provenance import make_record
from seechange_mpi.model.tables import DETECTIONS, MEASUREMENTS, SCORES, SOURCES, empty_table
from seechange_mpi.model.task import STEPS, SectionReport, StepRecord

SHAPE = (100, 100)


def wcs_header(ra, dec, shape=SHAPE, scale_arcsec=1.0):
    """FITS header text of a TAN projection centred on (ra, dec)."""
    ny, nx = shape
    cards = {"CTYPE1": "'RA---TAN'", "CTYPE2": "'DEC--TAN'", "CRVAL1": ra, "CRVAL2": dec, "CRPIX1": (nx + 1) / 2,
             "CRPIX2": (ny + 1) / 2, "CD1_1": -scale_arcsec / 3600, "CD1_2": 0.0, "CD2_1": 0.0,
             "CD2_2": scale_arcsec / 3600, "NAXIS1": nx, "NAXIS2": ny}
    return "".join(f"{k:<8}= {v!s:>20}".ljust(80) for k, v in cards.items())


def exposure(name="e1", mjd=60000.0, instrument="simulated", filter="r"):
    return ExposureInfo(name, instrument, f"/raw/{name}.fits", mjd, 45.0, filter, 150.0, 2.0, 1.1,
                        header={"OBJECT": "field"})


def tree(extraction=0, scoring=0, sub=True, testing=False):
    """Process -> record; `extraction` and `scoring` stand for changed parameters, `testing` for a test."""
    out = {"acquire_exposure": make_record("acquire_exposure", {"instrument": "simulated"}, [])}
    chain = ["preprocessing", "extraction"] + (["subtraction", "detection", "cutting", "measuring", "scoring"] if sub
                                               else [])
    last = "acquire_exposure"
    for process in chain:
        changed = {"extraction": extraction, "scoring": scoring}.get(process, 0)
        parameters = {"changed": changed} | ({"is_testing": True} if testing and process == "preprocessing" else {})
        out[process] = make_record(process, parameters, [out[last].id])
        last = process
    return out


def image_products(ra, dec, zp=25.0, filter="r", mjd=60000.0, lim_mag=20.5):
    plane = np.full((4, 4), 100, np.float32)
    sources = empty_table(SOURCES, 3)
    return pr.SectionProducts(
        image=pr.Image(plane, plane, np.zeros((4, 4), np.uint16), 2.0, 5.0, 6e4, "S1", filter, mjd, 45.0),
        background=pr.Background(plane, plane, 64, SHAPE, 100.0, 5.0),
        psf=pr.PSF(np.ones((1, 5, 5), np.float32) / 25, 0, 0.0, 0.0, 1.0, 1.0, 2.5, 20, 1.0),
        sources=pr.SourceList(sources, (2.0, 3.0, 4.0, 8.0)),
        wcs=pr.WorldCoordinates(wcs_header(ra, dec), "catalog", 30, 25.0),
        zp=pr.ZeroPoint(zp, 0.01, "catalog", 30, 0.02, 0.0, (2.0, 3.0, 4.0, 8.0), (0.3, 0.1, 0.05, 0.0), lim_mag))


def add_subtraction(p, ra, dec, bad=None, score=0.9, bits=0, reasons=None, deleted=None):
    """Add difference products with measurements at the given positions; `bits` are the measurements' own.

    `reasons` and `deleted` name the cuts that each failed; else `bad` says which failed negfrac.
    """
    n = len(ra)
    plane = np.zeros((4, 4), np.float32)
    flags = np.zeros((4, 4), np.uint16)
    p.sub = pr.SubImage(plane, plane, flags, plane, plane, plane, np.ones((5, 5), np.float32) / 25, p.zp.zp, plane,
                        flags, "zogy", {"flux_ratio": 1.0})
    p.detections = pr.Detections(empty_table(DETECTIONS, n))
    table = empty_table(MEASUREMENTS, n)
    table["index_in_sources"] = np.arange(n)
    table["ra"], table["dec"] = ra, dec
    table["flux_psf"], table["flux_psf_err"] = 1000.0, 10.0
    table["is_bad"] = np.zeros(n, bool) if bad is None else bad
    table["bitflag"] = bits
    table["bad_reasons"] = np.where(table["is_bad"], b"negfrac", b"")
    if reasons is not None:
        table["bad_reasons"] = [x.encode() for x in reasons]
        table["is_bad"] = table["bad_reasons"] != b""
    if deleted is not None:
        table["deletion_reasons"] = [x.encode() for x in deleted]
    stamps = np.zeros((n, 5, 5), np.float32)
    p.cutouts = pr.Cutouts(stamps, stamps, stamps)
    p.measurements = pr.Measurements(table)
    scores = empty_table(SCORES, n)
    scores["index_in_sources"] = np.arange(n)
    scores["score"] = score
    p.scores = [pr.Scores("simple", scores)]
    return p


def _hand_on(p, bits):
    """The image has `bits`; everything else has them from upstream."""
    p.image.bitflag = bits
    for name in ("background", "psf", "sources", "wcs", "zp", "sub", "detections", "cutouts", "measurements"):
        product = getattr(p, name)
        if product is not None:
            product.upstream_bitflag = bits


REFERENCE_ID = "11111111-2222-3333-4444-555555555555"


class Maker:
    """Writes bundles into a folder.

    A section is ``{"ra", "dec"}`` (its centre), optionally ``"at"`` (list of (ra, dec) of measurements), ``"bad"``,
    ``"zp"``, ``"reference"``, ``"fails"`` (name of the step that fails before any product), ``"badness"`` (bits of the
    image), ``"bits"`` (of the measurements), ``"reasons"`` and ``"deleted"`` (cuts that each measurement failed).
    """

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, sections, name="e1", mjd=60000.0, extraction=0, scoring=0, filter="r", suffix="", host="h1",
                 testing=False):
        e = exposure(name, mjd, filter=filter)
        shards, failures, records = [], {}, {}
        for section, s in sections.items():
            if "fails" in s:
                failures[section] = SectionReport(False, error_step=s["fails"], error_type="AlgorithmError",
                                                  error_message="no stars", host=host)
                records.update({r.id: r for r in tree(extraction, scoring, False, testing).values()})
                continue
            p = image_products(s["ra"], s["dec"], s.get("zp", 25.0), filter, mjd, s.get("lim_mag", 20.5))
            sub = "at" in s
            if sub:
                at = np.array(s["at"], float).reshape(-1, 2)
                add_subtraction(p, at[:, 0], at[:, 1], s.get("bad"), s.get("score", 0.9), s.get("bits", 0),
                                s.get("reasons"), s.get("deleted"))
            _hand_on(p, s.get("badness", 0))
            t = tree(extraction, scoring, sub, testing)
            records.update({r.id: r for r in t.values()})
            report = SectionReport(True, "" if sub else "no_reference", STEPS[-1] if sub else "photocal", host=host,
                                   steps=[StepRecord("preprocessing", "done", 1.0, 1.0, 100.0)],
                                   bitflag=s.get("badness", 0),
                                   start_time="2026-01-01T00:00:00+00:00", finish_time="2026-01-01T00:01:00+00:00")
            inputs = {"reference": s.get("reference", REFERENCE_ID)} if sub else {}
            ids = {k: r.id for k, r in t.items()}
            shards.append(write_shard(self.folder / name / "shards", e, section, p, report, ids, inputs, SHAPE))
        return write_bundle(self.folder / name / f"{name}_{len(list(self.folder.rglob('*.h5')))}{suffix}.h5", e,
                            records.values(), {"camera": {"name": "simulated"}}, shards, failures)

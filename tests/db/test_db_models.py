"""Classes of rows: the same columns as the tables, and what the mixins can do."""

import re
import uuid
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import Session

from seechange_mpi.db import models
from seechange_mpi.db.commit import commit_bundle
from seechange_mpi.db.engine import connect
from seechange_mpi.db.linking import healpix
from seechange_mpi.db.models import (
    PSF,
    Background,
    CodeVersion,
    Cutouts,
    DeepScore,
    DeepScoreSet,
    Exposure,
    FileFormat,
    Image,
    ImageType,
    Measurements,
    MeasurementSet,
    Object,
    Provenance,
    ProvenanceTag,
    Reference,
    Report,
    SmartSession,
    SourceList,
    WorldCoordinates,
    ZeroPoint,
)
from seechange_mpi.db.references import add_reference
from seechange_mpi.db.schema import metadata
from seechange_mpi.model.flags import Badness

AT = [(150.0, 2.0), (150.01, 2.0)]


def test_every_table_has_a_class():
    mapped = {m.local_table.name for m in models.Base.registry.mappers}
    assert set(metadata.tables) - mapped == {"commit_fence", "provenance_upstreams"}
    for mapper in models.Base.registry.mappers:
        assert mapper.local_table is metadata.tables[mapper.local_table.name], "columns are declared once"
        assert {c.key for c in mapper.column_attrs} == set(mapper.local_table.columns.keys())
        assert getattr(models, mapper.class_.__name__) is mapper.class_


def test_the_page_names_every_table():
    page = (Path(__file__).parents[2] / "docs" / "database.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    named = [name for cell in rows for name in re.findall(r"`(\w+)`", cell) if name.islower()]
    assert sorted(named) == sorted(metadata.tables)


@pytest.fixture
def session(url):
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with Session(engine) as opened:
        yield opened
    engine.dispose()


@pytest.fixture
def survey(url, bundles):
    """A reference e0, and an exposure e1 of two sections of which one was compared with it."""
    with connect(url) as conn:
        commit_bundle(conn, bundles({"S1": {"ra": 150.0, "dec": 2.0}}, name="e0", mjd=59990.0), radius_arcsec=1.0)
        add_reference(conn, "e0")
        reference = conn.execute("SELECT _id FROM images").fetchone()[0]
        commit_bundle(conn, bundles({"S1": {"ra": 150.0, "dec": 2.0, "at": AT, "reference": str(reference)},
                                     "S2": {"ra": 0.0, "dec": -2.0}}), radius_arcsec=1.0, tag="current")


@pytest.mark.db
def test_rows_of_a_survey(session, survey):
    exposure = session.scalars(select(Exposure).where(Exposure.origin_identifier == "e1")).one()
    assert (exposure.type, exposure.format, exposure.filter) == (ImageType.SCI, FileFormat.FITS, "r")
    assert not exposure.exists(), "the raw file was never there"
    sub = session.scalars(select(Image).where(Image.type == ImageType.DIFF)).one()
    assert sub.exposure_id == exposure.id
    assert sub.get_fullpath().is_file()
    assert sub.exists()
    assert Path(sub.filepath).suffix == ".h5"
    image = session.scalars(select(Image).where(Image.exposure_id == exposure.id, Image.section_id == "S1",
                                                ~Image.is_sub)).one()
    sources = session.scalars(select(SourceList).where(SourceList.image_id == image.id)).one()
    for cls in (PSF, Background, WorldCoordinates):
        one = session.scalars(select(cls).where(cls.sources_id == sources.id)).one()
        assert one.get_fullpath() == image.get_fullpath()
        assert cls.get_by_id(session, str(one.id)) is one
    sets = select(MeasurementSet.id).join(Cutouts, MeasurementSet.cutouts_id == Cutouts.id)
    rows = session.scalars(select(Measurements).where(Measurements.measurementset_id.in_(sets))).all()
    assert len(rows) == 2
    assert session.scalars(select(Object)).first().name.startswith("SCM J")
    assert session.scalars(select(Report).where(Report.image_id == image.id)).one().badness == ""
    assert Image.get_by_id(session, uuid.uuid4()) is None
    assert repr(image) == f"<Image _id={image.id}>"


@pytest.mark.db
def test_provenances(session, survey):
    tagged = select(ProvenanceTag.provenance_id).where(ProvenanceTag.tag == "current")
    scoring = session.scalars(select(Provenance).where(Provenance.process == "scoring",
                                                       Provenance.id.in_(tagged))).one()
    [measuring] = scoring.get_upstreams(session)
    assert measuring.process == "measuring"
    assert measuring.get_downstreams(session) == [scoring]
    assert session.get(CodeVersion, scoring.code_version_id).process == "scoring"
    scoring.is_bad, scoring.bad_comment, scoring.replaced_by = True, "wrong weights", measuring.id
    session.flush()
    session.delete(measuring)
    session.flush()
    session.expire_all()
    assert session.get(Provenance, scoring.id).replaced_by is None


@pytest.mark.db
def test_sessions_are_on_the_configured_database(url, survey, tmp_path):
    from seechange_mpi.config.resolve import Config

    path = tmp_path / "c.yaml"
    path.write_text(f"database:\n  url: {url}\npaths:\n  root: {tmp_path}\n")
    with SmartSession(config=Config(path)) as outer:
        assert outer.scalar(select(func.count()).select_from(Exposure)) == 2
        outer.scalars(select(Exposure)).first().target = "M31"
        with SmartSession(outer) as inner:
            assert inner is outer
        assert outer.in_transaction(), "a given session stays as it is"
    with SmartSession(config=Config(path)) as again:
        assert set(again.scalars(select(Exposure.target))) == {""}, "what is not committed is lost"


@pytest.mark.db
def test_the_example_of_the_page(url, survey, tmp_path, monkeypatch, capsys):
    from seechange_mpi.config.resolve import Config

    page = (Path(__file__).parents[2] / "docs" / "database.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "c.yaml"
    path.write_text(f"database:\n  url: {url}\npaths:\n  root: {tmp_path}\n")
    monkeypatch.setattr(Config, "get", classmethod(lambda cls: cls(path)))
    exec(code, {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["e0", "S1"], ["e1", "S1"]]
    assert [line.split()[0] for line in lines[2:]] == ["SCM"]


def objects(session, ra, dec):
    for k, (a, d) in enumerate(zip(ra, dec, strict=True)):
        session.add(Object(_id=uuid.uuid4(), name=f"o{k}", ra=float(a), dec=float(d), healpix=int(healpix(a, d))))
    session.flush()


@pytest.mark.db
@pytest.mark.parametrize(("ra", "dec"), [(0.0, 0.0), (359.9999, 45.0), (77.0, 90.0), (10.0, -89.999)])
@pytest.mark.parametrize("radius_arcsec", [1.5, 60.0, 7200.0])
def test_cones(session, ra, dec, radius_arcsec):
    """At RA 0 and at the poles the same as angles between unit vectors."""
    rng = np.random.default_rng(3)
    turn, away = rng.uniform(0, 2 * np.pi, 60), np.deg2rad(radius_arcsec / 3600 * rng.uniform(0, 2, 60))
    a, d = np.deg2rad([ra, dec])
    centre = np.array([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])
    east = np.array([-np.sin(a), np.cos(a), 0.0])
    north = np.cross(centre, east)
    v = (np.cos(away)[:, None] * centre + np.sin(away)[:, None] * (np.cos(turn)[:, None] * east
                                                                  + np.sin(turn)[:, None] * north))
    objects(session, np.rad2deg(np.arctan2(v[:, 1], v[:, 0])) % 360, np.rad2deg(np.arcsin(v[:, 2])))
    found = Object.cone_search(session, ra, dec, radius_arcsec)
    within = np.rad2deg(away) * 3600 <= radius_arcsec
    assert {o.name for o in found} == {f"o{k}" for k in np.flatnonzero(within)}
    assert [o.name for o in found] == [f"o{k}" for k in np.argsort(away) if within[k]], "the nearest first"
    same = Object.cone_search(session, ra, dec, radius_arcsec / 60, "arcmin", ~Object.is_test)
    assert [o.name for o in same] == [o.name for o in found]
    far = session.scalars(select(Object).where(Object.name == f"o{np.argmax(away)}")).one()
    here = Object(ra=ra, dec=dec)
    assert here.distance_to(far) == pytest.approx(np.rad2deg(away.max()) * 3600, abs=1e-4)


@pytest.mark.db
def test_a_cone_uses_the_index(session):
    rng = np.random.default_rng(1)
    objects(session, rng.uniform(0, 360, 300), rng.uniform(-90, 90, 300))
    session.connection().exec_driver_sql("SET LOCAL enable_seqscan = off")
    query = select(Object).where(Object.within_radius(10.0, 20.0, 5.0))
    text = str(query.compile(session.connection(), compile_kwargs={"literal_binds": True}))
    plan = "\n".join(session.connection().exec_driver_sql("EXPLAIN " + text.replace("%", "%%")).scalars())
    assert "ix_objects_healpix" in plan


@pytest.mark.db
def test_images_at_a_position(session, url, bundles):
    sections = {"W": {"ra": 359.99, "dec": 0.0}, "E": {"ra": 0.01, "dec": 0.0}, "N": {"ra": 30.0, "dec": 89.995},
                "far": {"ra": 180.0, "dec": 0.0}}
    with connect(url) as conn:
        commit_bundle(conn, bundles(sections), radius_arcsec=1.0)

    def at(ra, dec, *where):
        return {i.section_id for i in Image.find_containing(session, ra, dec, *where)}

    assert at(0.0, 0.0) == {"W", "E"}
    assert at(360.0, 0.0) == {"W", "E"}
    assert at(359.985, 0.005) == {"W"}
    assert at(0.02, -0.01) == {"E"}
    assert at(0.02, -0.01, Image.filter == "g") == set()
    assert at(123.0, 90.0) == {"N"}, "the pole"
    assert at(210.0, 89.999) == {"N"}, "beyond the pole"
    assert at(180.0, 0.0) == {"far"}
    assert at(180.0, 0.02) == set()
    by_name = {i.section_id: i for i in session.scalars(select(Image))}
    touching = {n: {i.section_id for i in Image.find_overlapping(session, by_name[n])} for n in by_name}
    assert touching == {"W": {"W", "E"}, "E": {"W", "E"}, "N": {"N"}, "far": {"far"}}


@pytest.mark.db
def test_badness_in_words_and_down_the_chain(session, survey):
    image = session.scalars(select(Image).join(Exposure, Image.exposure_id == Exposure.id).where(
        Exposure.origin_identifier == "e1", Image.section_id == "S1", ~Image.is_sub)).one()
    assert image.badness == ""
    image.badness = "Bright Sky"
    image.append_badness("ghost")
    assert image.badness == "bright sky, ghost"
    assert image.bitflag == image._bitflag == Badness.BRIGHT_SKY | Badness.GHOST
    changed = image.update_downstream_badness(session)
    assert changed["deepscores"] == 2
    assert "refs" not in changed
    sub = session.scalars(select(Image).where(Image.is_sub)).one()
    assert sub.badness == "bright sky, ghost"
    assert sub._bitflag == 0
    for cls in (ZeroPoint, Cutouts, Measurements, DeepScoreSet, DeepScore):
        assert session.scalars(select(func.count()).select_from(cls).where(cls.bitflag != 0)).one() > 0
    session.rollback()
    assert session.scalars(select(Image.bitflag)).all() == [0, 0, 0, 0]


@pytest.mark.db
def test_a_reference_is_marked_by_class(session, survey):
    ref = session.scalars(select(Reference)).one()
    ref.append_badness("superseded reference")
    assert set(ref.update_downstream_badness(session)) == {
        "images", "detections", "cutouts", "measurement_sets", "measurements", "deepscore_sets", "deepscores"}
    assert session.scalars(select(Image).where(Image.is_sub)).one().badness == "superseded reference"
    ref.bitflag = 0
    ref.update_downstream_badness(session)
    assert session.scalars(select(func.sum(Image.bitflag))).one() == 0


@pytest.mark.db
def test_a_missing_file_comes_from_the_archive(url, survey, tmp_path, monkeypatch):
    """Of the configuration, through a session."""
    from seechange_mpi.config.resolve import Config
    from seechange_mpi.io import retrieval

    monkeypatch.setattr(retrieval, "_retriever", None)
    path = tmp_path / "c.yaml"
    path.write_text(f"database:\n  url: {url}\npaths:\n  root: {tmp_path / 'work'}\n"
                    f"archive:\n  kind: directory\n  path: {tmp_path / 'archive'}\n")
    with SmartSession(config=Config(path)) as session:
        image = session.scalars(select(Image)).first()
        session.expunge(image)
    asked = []
    assert retrieval.is_active()
    monkeypatch.setattr(retrieval._retriever, "bring", lambda p: bool(asked.append(p)))
    assert image.get_fullpath().exists()
    assert asked == []
    image.filepath = str(tmp_path / "gone.h5")
    assert not image.exists()
    assert image.get_fullpath(download=False) == tmp_path / "gone.h5"
    assert asked == []
    assert image.get_fullpath() == tmp_path / "gone.h5"
    assert asked == [tmp_path / "gone.h5"]

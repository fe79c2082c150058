"""Shards and bundles: what goes in comes out, damage is found, and a folder can be moved."""

import dataclasses
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import numpy.lib.recfunctions
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seechange_mpi.io.bundle import (
    pack_bundle,
    read_bundle,
    read_section,
    read_tables,
    section_shards,
    validate_bundle,
    write_bundle,
)
from seechange_mpi.io.difference import read_differences
from seechange_mpi.io.shard import read_shard, scan_shards, write_shard
from seechange_mpi.model.errors import BadInput
from seechange_mpi.model.task import SectionReport, StepRecord

sys.path.insert(0, str(Path(__file__).parents[1] / "db"))
from made_bundles import Maker, add_subtraction, exposure, image_products

AT = [(150.0, 2.0), (150.01, 2.01)]


def same(a, b):
    """Whether two products are equal, arrays bit by bit, NaN included."""
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b or (a != a and b != b)


@pytest.fixture
def two(tmp_path):
    """A bundle of two sections and one that failed."""
    return Maker(tmp_path)({"S1": {"ra": 150.0, "dec": 2.0, "at": AT}, "S2": {"ra": 150.1, "dec": 2.0},
                            "S3": {"fails": "extraction"}})


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 5), sub=st.booleans(), shape=st.tuples(st.integers(1, 300),
       st.integers(1, 40)), text=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=40))
def test_round_trip(tmp_path, seed, n, sub, shape, text):
    rng = np.random.default_rng(seed)
    p = image_products(150.0, 2.0)
    p.image.data = rng.normal(size=shape).astype(np.float32)
    p.image.data.flat[0] = np.nan
    p.image.flags = rng.integers(0, 65535, shape).astype(np.uint16)
    p.image.weight = rng.random(shape).astype(np.float32)
    p.zp.lim_mag = float("nan")
    if sub:
        add_subtraction(p, rng.uniform(0, 360, n), rng.uniform(-90, 90, n))
        p.cutouts.new = rng.normal(size=(n, 5, 5)).astype(np.float32)
    report = SectionReport(False, "", "scoring" if sub else "photocal", "scoring", "ValueError", text, text * 1000,
                           [text], [StepRecord("extraction", "done", 1.5, 1.2, 300.0)], 2, "host", "t0", "t1")
    path = write_shard(tmp_path, exposure(), "S1", p, report, {"preprocessing": "A"}, {"catalog": "c:1"}, shape)
    back = read_shard(path)
    assert same(p, back.products)
    assert back.report == report
    assert (back.provenance_ids, back.inputs, back.shape) == ({"preprocessing": "A"}, {"catalog": "c:1"}, shape)
    again = write_shard(tmp_path, exposure(), "S1", p, dataclasses.replace(report, host="other", start_time="later"),
                        {"preprocessing": "A"}, {"catalog": "c:1"}, shape)
    assert again == path, "hosts and times do not enter the content"
    changed = p.image.data.copy()
    changed.flat[-1] = 7.5
    p.image.data = changed
    assert write_shard(tmp_path, exposure(), "S1", p, report, {}, {}, shape) != path


def test_a_bundle_says_what_it_holds(two):
    info = read_bundle(two)
    assert info.exposure == exposure()
    assert info.section_ids == ("S1", "S2", "S3")
    assert {p.process for p in info.provenances} >= {"preprocessing", "extraction", "scoring"}
    assert validate_bundle(two) == []
    assert read_section(two, "S3").report.error_step == "extraction"
    with pytest.raises(BadInput, match=r"section: expected S9, found S1, S2, S3"):
        read_section(two, "S9")


def test_tables_need_no_shard_and_pixels_follow_relative_links(two, tmp_path):
    whole = read_section(two, "S1", pixels=True)
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    shutil.move(two.parent, moved)
    assert same(read_section(moved / two.name, "S1", pixels=True).products, whole.products)
    shutil.rmtree(moved / "shards")
    tables = read_section(moved / two.name, "S1")
    assert same(tables.products.measurements, whole.products.measurements)
    assert tables.products.image.data.shape == (0, 0)
    with pytest.raises(BadInput):
        read_section(moved / two.name, "S1", pixels=True)
    assert any("S1" in p for p in validate_bundle(moved / two.name))
    shutil.rmtree(moved)


def test_a_packed_bundle_stands_alone(two, tmp_path):
    packed = pack_bundle(two, tmp_path / "archive" / "one.h5")
    whole = read_section(two, "S1", pixels=True)
    shutil.rmtree(two.parent)
    assert validate_bundle(packed) == []
    back = read_section(packed, "S1", pixels=True)
    assert same(back.products, whole.products)
    assert (back.content_hash, back.image_hash, back.sub_hash) == (whole.content_hash, whole.image_hash, whole.sub_hash)


@pytest.mark.parametrize("keep", [0, 10, 2000, 0.5, 0.95])
def test_truncation_is_bad_input(two, keep):
    shard = next((two.parent / "shards").glob("S1_*.h5"))
    for path, read in ((shard, read_shard), (two, lambda p: [read_section(p, s) for s in read_bundle(p).section_ids])):
        data = path.read_bytes()
        path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
        with pytest.raises(BadInput) as caught:
            read(path)
        assert str(path) in str(caught.value)


def test_other_files_are_bad_input(tmp_path, two):
    with pytest.raises(BadInput, match="no such file"):
        read_bundle(tmp_path / "none.h5")
    with h5py.File(tmp_path / "other.h5", "w") as f:
        f["x"] = 1
    with pytest.raises(BadInput, match="format"):
        read_bundle(tmp_path / "other.h5")
    with pytest.raises(BadInput, match="format"):
        read_shard(two)


def test_a_flipped_byte_in_the_pixels_is_found(two):
    shard = next((two.parent / "shards").glob("S1_*.h5"))
    with h5py.File(shard) as f:
        where = f["sections/S1/image"].id.get_chunk_info(0)
    data = bytearray(shard.read_bytes())
    data[where.byte_offset + where.size // 2] ^= 0xFF
    shard.write_bytes(data)
    assert validate_bundle(two) != []
    with pytest.raises(BadInput):
        read_shard(shard)


def test_tampering_is_found(two):
    with h5py.File(two, "r+") as f:
        table = f["sections/S1/measurements"]
        rows = table[...]
        rows["flux_psf"][0] += 1
        table[...] = rows
    assert any("S1" in p for p in validate_bundle(two))


def test_changed_parameters_are_found(two):
    with h5py.File(two, "r+") as f:
        rows = f["provenance"]
        row = rows[0]
        rows[0] = (row[0], row[1], row[2], '{"changed": 99}', row[4])
    assert any("is not the id of its parameters" in p for p in validate_bundle(two))


def test_scan_names_the_damaged_and_ignores_the_unfinished(two):
    folder = two.parent / "shards"
    (folder / ".S9.123.tmp").write_bytes(b"half")
    (folder / "S8_broken.h5").write_bytes(b"not hdf5")
    found = scan_shards(folder)
    assert [s.section_id for s in found.shards] == ["S1", "S2"]
    assert len(found.problems) == 1
    assert "S8_broken.h5" in found.problems[0]
    assert scan_shards(folder / "none").shards == []


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    from seechange_mpi.io import shard as module

    def broken(*_):
        raise RuntimeError("killed")

    monkeypatch.setattr(module, "write_report", broken)
    with pytest.raises(RuntimeError):
        write_shard(tmp_path, exposure(), "S1", image_products(1.0, 2.0), SectionReport(True), {}, {}, (4, 4))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_transient_and_says_so(tmp_path, monkeypatch):
    import errno

    from seechange_mpi.io import h5util
    from seechange_mpi.model.errors import TransientError

    def full(_path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(h5util, "_fsync", full)
    with pytest.raises(TransientError, match=r"no space left while writing S1: .* MB free"):
        write_shard(tmp_path, exposure(), "S1", image_products(1.0, 2.0), SectionReport(True), {}, {}, (4, 4))
    assert list(tmp_path.iterdir()) == []


def newer(path, **attrs):
    with h5py.File(path, "r+") as f:
        f.attrs.update({"version": 2} | attrs)


def test_a_newer_shard_is_refused_wherever_it_is_read(two, tmp_path):
    shard = next((two.parent / "shards").glob("S1_*.h5"))
    newer(shard)
    later = "version of the format: expected at most 1, which this program knows, found 2"
    for read in (lambda: read_shard(shard), lambda: read_section(shard, "S1"),
                 lambda: read_section(two, "S1", pixels=True), lambda: list(read_differences(two, ["S1"])),
                 lambda: write_bundle(tmp_path / "new.h5", exposure(), [], {}, [shard])):
        with pytest.raises(BadInput, match=later) as caught:
            read()
        assert str(shard) in str(caught.value)
        assert "install" in str(caught.value)
    found = scan_shards(shard.parent)
    assert [s.section_id for s in found.shards] == ["S2"]
    assert len(found.problems) == 1
    assert later in found.problems[0]


def test_a_file_of_another_kind_among_the_shards_is_named(two):
    folder = two.parent / "shards"
    with h5py.File(folder / "S5_other.h5", "w") as f:
        f.create_group("sections/S5")
    with h5py.File(folder / "S6_none.h5", "w") as f:
        f.attrs["format"] = "seechange-mpi shard"
        f.create_group("sections")
    found = scan_shards(folder)
    assert [s.section_id for s in found.shards] == ["S1", "S2"]
    assert ["no format attribute" in found.problems[0], "no section inside" in found.problems[1]] == [True, True]
    with pytest.raises(BadInput, match="no section inside"):
        read_shard(folder / "S6_none.h5")


def test_a_newer_bundle_names_the_program_that_wrote_it(two):
    newer(two, code_version="9.9.0")
    for read in (read_bundle, read_tables, section_shards, validate_bundle):
        with pytest.raises(BadInput, match=r"found 2, written by version 9\.9\.0: install"):
            read(two)


def test_columns_that_are_not_known_are_named(two):
    with h5py.File(two, "r+") as f:
        g = f["sections/S1"]
        table = g["measurements"][...]
        del g["measurements"]
        g["measurements"] = np.lib.recfunctions.rename_fields(table, {"ra": "right_ascension"})
    with pytest.raises(BadInput, match="lacking are ra; unknown are right_ascension"):
        read_section(two, "S1")

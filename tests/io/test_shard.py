"""Shards under bad luck: a full disk, a killed process, strange texts; and that they keep to the fixed layout."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from seechange_mpi.io.bundle import pack_bundle, read_section, validate_bundle
from seechange_mpi.io.h5util import durable_h5, publish
from seechange_mpi.io.shard import read_shard, scan_shards, write_shard
from seechange_mpi.model.errors import BadInput, TransientError
from seechange_mpi.model.task import SectionReport, StepRecord

sys.path.insert(0, str(Path(__file__).parents[1] / "db"))
from made_bundles import Maker, add_subtraction, exposure, image_products

MADE = Path(__file__).parents[1] / "db"
DONE = SectionReport(True, completed_step="scoring", steps=[StepRecord("scoring", "done", 0.1, 0.2, 3.0)])

WRITER = f"""
import sys, time
sys.path.insert(0, {str(MADE)!r})
import numpy as np
from made_bundles import exposure, image_products
from seechange_mpi.io import h5util
from seechange_mpi.io.shard import write_shard
from seechange_mpi.model.task import SectionReport
p = image_products(150.0, 2.0)
p.image.data = np.random.default_rng(1).normal(size=(512, 512)).astype("f4")
"""


def shard(folder, products=None, report=DONE, ids=None, inputs=None):
    return write_shard(folder, exposure(), "S1", products or image_products(150.0, 2.0), report, ids or {},
                       inputs or {}, (4, 4))


@pytest.mark.parametrize("limit", [3_000, 200_000, 900_000])
def test_no_room_is_one_clear_error_and_the_process_lives_on(tmp_path, limit):
    """With errors inside HDF5 the process used to end with a segmentation fault."""
    script = WRITER + f"""
import resource
from seechange_mpi.model.errors import TransientError
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
for k in range(3):
    try:
        write_shard(sys.argv[1], exposure(), "S1", p, SectionReport(True), {{}}, {{}}, (512, 512))
    except TransientError as err:
        print(err)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(write_shard(sys.argv[1], exposure(), "S1", p, SectionReport(True), {{}}, {{}}, (512, 512)))
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60,
                          check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert all(str(tmp_path) in e and "MB needed" in e and "MB free" in e for e in lines[:3])
    assert [str(p) for p in tmp_path.iterdir()] == [lines[3]]
    assert read_shard(lines[3]).products.image.data.shape == (512, 512)


def test_a_process_killed_while_writing_leaves_no_shard(tmp_path):
    script = WRITER + """
def wait(path):
    print(path, flush=True)
    time.sleep(60)
h5util._fsync = wait
write_shard(sys.argv[1], exposure(), "S1", p, SectionReport(True), {}, {}, (512, 512))
"""
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
        unfinished = Path(writer.stdout.readline().strip())
        writer.send_signal(signal.SIGKILL)
    assert unfinished.exists()
    assert list(tmp_path.glob("*.h5")) == []
    assert scan_shards(tmp_path).shards == []
    path = shard(tmp_path)
    assert sorted(tmp_path.iterdir()) == [path]


def test_texts_that_hdf5_cannot_hold(tmp_path):
    report = SectionReport(False, error_step="preprocessing", error_type="BadInput",
                           error_message="card \x00\x01 é \udc80",
                           error_traceback="x" * 100_000, warnings=["a\x00b"])
    back = read_shard(shard(tmp_path, report=report)).report
    assert back.error_message == "card \\x00\x01 é \\udc80"
    assert back.error_traceback == report.error_traceback
    assert back.warnings == report.warnings


def test_figures_of_numpy_types_are_stored(tmp_path):
    p = add_subtraction(image_products(150.0, 2.0), np.zeros(1), np.zeros(1))
    p.sub.metrics = {"ratio": np.float32(0.5), "n": np.int64(3)}
    p.scores[0].info = {"weights": np.arange(3)}
    back = read_shard(shard(tmp_path, p)).products
    assert back.sub.metrics == {"ratio": 0.5, "n": 3}
    assert back.scores[0].info == {"weights": [0, 1, 2]}


def test_equal_pixels_of_another_provenance_replace_nothing(tmp_path):
    first = shard(tmp_path, ids={"preprocessing": "A"})
    second = shard(tmp_path, ids={"preprocessing": "B"})
    third = shard(tmp_path, ids={"preprocessing": "A"}, inputs={"catalog": "c"})
    assert len({first, second, third}) == 3
    assert len({read_shard(p).content_hash for p in (first, second, third)}) == 1
    assert read_shard(first).provenance_ids == {"preprocessing": "A"}


def test_the_fixed_layout(tmp_path):
    """DESIGN section 6, as other programs read it."""
    bundle = Maker(tmp_path)({"S1": {"ra": 150.0, "dec": 2.0, "at": [(150.0, 2.0)]}})
    packed = pack_bundle(bundle, tmp_path / "packed.h5")
    for path in (bundle, packed):
        assert path.read_bytes()[8] <= 3, "superblock newer than HDF5 1.10 reads"
        with h5py.File(path) as f:
            assert f.attrs["format"] == "seechange-mpi bundle"
            assert set(f) == {"provenance", "exposure", "sections"}
            s = f["sections/S1"]
            for name in ("image", "weight", "flags", "background", "psf", "wcs", "zeropoint", "sources", "detections",
                         "measurements", "scores/simple", "inputs", "sub/image", "sub/weight", "sub/flags",
                         "sub/score", "sub/psf", "sub/wcs", "sub/zeropoint", "cutouts/new", "cutouts/ref",
                         "cutouts/sub", "report"):
                assert name in s, name
            assert s["sub/zeropoint"].attrs["zp"] == s["zeropoint"].attrs["zp"] == 25.0
            assert s["sub/wcs"].attrs["header"] == s["wcs"].attrs["header"]
            assert s["inputs"].attrs["reference"]
            assert s["report"].attrs["success"]
            assert s["report/steps"]["step"].tolist() == [b"preprocessing"]
            assert s["report/steps"].attrs["unit:wall_s"] == "s"
            assert s["image"].fletcher32
            link = s.get("image", getlink=True)
            assert isinstance(link, h5py.ExternalLink if path == bundle else h5py.HardLink)
            if path == bundle:
                assert not os.path.isabs(link.filename)
    assert validate_bundle(bundle) == validate_bundle(packed) == []


def test_packing_needs_room_and_all_shards(tmp_path, monkeypatch):
    bundle = Maker(tmp_path)({"S1": {"ra": 150.0, "dec": 2.0}})
    from seechange_mpi.io import h5util

    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(h5util.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(TransientError, match=r"MB needed, 0\.0 MB free"):
        pack_bundle(bundle, tmp_path / "out" / "p.h5")
    monkeypatch.undo()
    lost = next((bundle.parent / "shards").iterdir())
    lost.unlink()
    with pytest.raises(BadInput, match=lost.name):
        pack_bundle(bundle, tmp_path / "out" / "p.h5")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_lost_shard_is_named(tmp_path):
    bundle = Maker(tmp_path)({"S1": {"ra": 150.0, "dec": 2.0}})
    lost = next((bundle.parent / "shards").iterdir())
    lost.unlink()
    with pytest.raises(BadInput, match=lost.name):
        read_section(bundle, "S1", pixels=True)


def test_the_caller_decides_when_a_file_appears(tmp_path):
    with durable_h5(tmp_path, "x") as (f, tmp):
        f["a"] = 1
    assert not (tmp_path / "x.h5").exists()
    publish(tmp, tmp_path / "x.h5")
    assert [p.name for p in tmp_path.iterdir()] == ["x.h5"]


def test_badness_comes_back_and_older_files_have_none(tmp_path):
    p = add_subtraction(image_products(150.0, 2.0), [150.0], [2.0], bits=1 << 41)
    names = ("image", "background", "psf", "sources", "wcs", "zp", "sub", "detections", "cutouts", "measurements")
    for k, name in enumerate(names):
        getattr(p, name).bitflag, getattr(p, name).upstream_bitflag = 1 << (k + 30), k
    path = shard(tmp_path, p, SectionReport(True, completed_step="scoring", bitflag=1 << 46))
    for pixels in (True, False):
        back = read_shard(path, pixels=pixels)
        for k, name in enumerate(names):
            product = getattr(back.products, name)
            assert (product.bitflag, product.upstream_bitflag) == (1 << (k + 30), k), name
        assert back.report.bitflag == 1 << 46
        assert back.products.measurements.table["bitflag"].tolist() == [1 << 41]
    with h5py.File(path, "r+") as f:
        g = f["sections/S1"]
        for name in ("", "image", "background", "psf", "sources", "wcs", "zeropoint", "sub", "detections", "cutouts",
                     "measurements", "report"):
            for key in ("bitflag", "upstream_bitflag"):
                g[f"/sections/S1/{name}"].attrs.pop(key, None)
        table = g["measurements"][...]
        del g["measurements"]
        g["measurements"] = table[[n for n in table.dtype.names if n != "bitflag"]].astype(
            [(n, table.dtype[n]) for n in table.dtype.names if n != "bitflag"])
    old = read_shard(path)
    assert all(getattr(old.products, n).bitflag == 0 for n in names)
    assert old.report.bitflag == 0
    assert old.products.measurements.table["bitflag"].tolist() == [0]
    assert old.products.measurements.table["flux_psf"].tolist() == [1000.0]


def test_figures_of_the_corrections_are_stored_and_files_without_them_are_read(tmp_path):
    products = image_products(150.0, 2.0)
    products.image.metrics = {"fringe_scale": 431.5, "n_trails": 2}
    path = shard(tmp_path, products)
    assert read_shard(path).products.image.metrics == products.image.metrics
    with h5py.File(path, "r+") as f:
        image = f["sections/S1/image"]
        del image.attrs["metrics"]
    assert read_shard(path).products.image.metrics == {}

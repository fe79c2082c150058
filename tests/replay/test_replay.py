"""A section is made again from its bundle alone, to the last bit; what is not what it was is refused."""

import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
from astropy.io import fits

from seechange_mpi.config.resolve import Config
from seechange_mpi.io.bundle import read_bundle, read_section
from seechange_mpi.model.errors import BadInput, ConfigError
from seechange_mpi.model.task import STEPS
from seechange_mpi.replay.compare import compare_products
from seechange_mpi.replay.inputs import Places
from seechange_mpi.replay.rerun import replay_section

pytestmark = pytest.mark.db


@pytest.fixture
def bundle(processed, tmp_path):
    """A copy of the newest bundle, with that of its reference, and nothing else."""
    config, survey = processed
    bundles = Config(config).bundles
    for exposure in (survey.exposures[0], survey.exposures[2]):
        shutil.copytree(bundles / exposure.stem, tmp_path / exposure.stem)
    return next((tmp_path / survey.exposures[2].stem).glob("*.h5"))


def test_everything_is_identical_without_any_database(bundle, cli, capsys):
    assert cli("replay", bundle, "--section", "T1") == 0
    out = capsys.readouterr().out
    assert out.strip() == f"T1: identical ({', '.join(STEPS)})"


def test_single_steps_are_rerun_on_what_is_stored(bundle):
    done = replay_section(bundle, "T1", ("extraction", "astrocal", "detection", "measuring"))
    assert done.steps == ("extraction", "astrocal", "detection", "measuring")
    assert done.differences == []


def test_a_changed_table_is_different_and_says_by_how_much(bundle, cli, capsys):
    with h5py.File(bundle, "r+") as f:
        table = f["sections/T1/measurements"]
        rows = table[...]
        rows["flux_psf"][0] += 7.5
        table[...] = rows
    assert cli("replay", bundle, "--section", "T1", "--step", "measuring", "--step", "scoring") == 3
    out = capsys.readouterr().out
    assert "T1: DIFFERENT (measuring, scoring)" in out
    assert f"measurements.flux_psf: 1 of {len(rows)} differ, by 7.5 at most; 1 beyond the tolerance" in out


def test_tolerances_are_those_that_are_told(bundle):
    stored = read_section(bundle, "T1", pixels=True).products

    def differences(name, **changes):
        return compare_products(stored, replace(stored, **{name: replace(getattr(stored, name), **changes)}), (name,))

    (found,) = differences("image", data=stored.image.data * np.float32(1 + 5e-6))
    assert found.within
    assert "by " in found.text
    (found,) = differences("image", data=stored.image.data * np.float32(1.001))
    assert not found.within
    moved = stored.sources.table.copy()
    moved["ra"] += 0.3e-3 / 3600
    (found,) = differences("sources", table=moved)
    assert not found.within, "0.3 mas"
    (found,) = differences("zp", n_stars=stored.zp.n_stars + 1)
    assert not found.within
    assert differences("wcs") == []
    crval = stored.wcs.header.index("CRVAL1")
    value = float(stored.wcs.header[crval + 10:crval + 30])
    for shift_mas, within in ((0.01, True), (5.0, False)):
        card = f"{value + shift_mas / 3.6e6:20.14f}"
        header = stored.wcs.header[:crval + 10] + card.rjust(20) + stored.wcs.header[crval + 30:]
        (found,) = differences("wcs", header=header)
        assert found.within == within, found
    flags = stored.image.flags.copy()
    flags[0, 0] ^= 1
    (found,) = differences("image", flags=flags)
    assert found.within, "one pixel of 160,000"


def test_a_missing_raw_file_is_refused_and_named_elsewhere_is_found(processed, bundle, tmp_path, cli, capsys):
    raw = processed[1].exposures[2]
    moved = tmp_path / raw.name
    shutil.move(raw, moved)
    try:
        assert cli("replay", bundle, "--section", "T1") == 4
        assert f"{raw}: raw exposure: expected the file that was processed, found no such file; say where it is with " \
               "--raw FILE" in capsys.readouterr().err
        assert replay_section(bundle, "T1", ("preprocessing",), Places(raw=moved)).differences == []
        with fits.open(moved, mode="update") as hdus:
            hdus["T1"].data[5, 30] += 1
        with pytest.raises(BadInput, match="raw pixels of section T1: expected digest"):
            replay_section(bundle, "T1", ("preprocessing",), Places(raw=moved))
        assert replay_section(bundle, "T1", ("detection",)).same, "needs no raw file"
    finally:
        with fits.open(moved, mode="update") as hdus:
            hdus["T1"].data[5, 30] -= 1
        shutil.move(moved, raw)


def test_another_calibration_frame_or_catalogue_is_refused(processed, bundle, tmp_path):
    survey = processed[1]
    other = tmp_path / "calib"
    shutil.copytree(survey.root / "calib", other)
    flat = other / "flat_T1_r.fits"
    with fits.open(flat, mode="update") as hdus:
        next(h for h in hdus if h.data is not None).data[3, 3] *= 1.01
    hidden = survey.root / "calib-hidden"
    with pytest.raises(BadInput, match=r"calibration frame \(flat\) of section T1: expected flat_T1_r.fits:\w+, found "
                                       r"flat_T1_r.fits:\w+; say where it is with --calibration DIR"):
        replay_section(bundle, "T1", (), Places(calibration=other))
    (survey.root / "calib").rename(hidden)
    try:
        with pytest.raises(BadInput, match="no such file; say where it is with --calibration DIR"):
            replay_section(bundle, "T1")
        assert replay_section(bundle, "T1", ("preprocessing",), Places(calibration=hidden)).same
    finally:
        hidden.rename(survey.root / "calib")
    from astropy.table import Table

    stars = Table.read(survey.root / "catalog.fits")
    stars["ra"][:] += 1e-4
    stars.write(tmp_path / "catalog.fits")
    with pytest.raises(BadInput, match=r"input 'catalog' of section T1: expected catalog.fits:.*--catalog FILE"):
        replay_section(bundle, "T1", ("astrocal",), Places(catalog=tmp_path / "catalog.fits"))


def test_another_camera_or_reference_is_refused(processed, bundle, tmp_path):
    survey = processed[1]
    text = (survey.root / "tiny.yaml").read_text()
    (tmp_path / "tiny.yaml").write_text(text.replace("gain: 1.7", "gain: 1.8"))
    with pytest.raises(BadInput, match=r"camera: expected a definition with digest \w+, found .*tiny.yaml with"):
        replay_section(bundle, "T1", (), Places(camera=str(tmp_path / "tiny.yaml")))
    folder = tmp_path / survey.exposures[0].stem
    reference = next(folder.glob("*.h5"))
    with h5py.File(reference, "r+") as f:
        f["sections/T1"].attrs["image_hash"] = "0" * 64
    with pytest.raises(BadInput, match="products of reference section T1: expected digest"):
        replay_section(bundle, "T1", ("subtraction",))
    shutil.rmtree(folder)
    with pytest.raises(BadInput, match=r"reference: expected a bundle with image .* below"):
        replay_section(bundle, "T1", ("subtraction",))
    elsewhere = Places(config=Config(processed[0]))
    assert replay_section(bundle, "T1", ("subtraction",), elsewhere).same, "the database knows where it is"


def test_parameters_that_are_not_the_provenances_are_refused(bundle):
    with h5py.File(bundle, "r+") as f:
        text = f["exposure"].attrs["config"]
        f["exposure"].attrs["config"] = text.replace('"min_matched": 5', '"min_matched": 6')
    assert read_bundle(bundle).config["subtraction"]["min_matched"] == 6
    with pytest.raises(BadInput, match=r"provenance of subtraction in section T1: .*min_matched: 5 | 6"):
        replay_section(bundle, "T1", ("subtraction",))


def test_usage(bundle, cli, capsys):
    assert cli("replay", bundle, "--section", "T9") == 4
    assert "section: expected T9, found T1" in capsys.readouterr().err
    assert cli("replay", bundle, "--step", "subtract") == 2
    assert "there is no step 'subtract'" in capsys.readouterr().err
    reference = next(bundle.parent.parent.glob("*20251121*/*.h5"))
    with pytest.raises(ConfigError, match="never reached detection"):
        replay_section(reference, "T1", ("detection",))
    assert replay_section(reference, "T1").steps == STEPS[:4]

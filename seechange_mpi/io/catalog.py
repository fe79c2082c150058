"""Read star catalogues (FITS, Parquet, ECSV) around a position, with column mapping and proper motions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seechange_mpi.model.errors import BadInput, ConfigError

F64 = npt.NDArray[np.float64]

ALIASES: dict[str, tuple[str, ...]] = {
    "ra": ("ra", "ra_deg", "ra_icrs", "raj2000", "alpha_j2000", "x_world", "xwin_world", "coord_ra"),
    "dec": ("dec", "dec_deg", "de_icrs", "dej2000", "delta_j2000", "y_world", "ywin_world", "coord_dec"),
    "pmra": ("pmra", "pmra_masyr", "pm_ra_cosdec"),
    "pmdec": ("pmdec", "pmde", "pmdec_masyr"),
    "g": ("phot_g_mean_mag", "g", "mag_g", "gmag", "mag"),
    "bp": ("phot_bp_mean_mag", "bp", "mag_bp", "bpmag"),
    "rp": ("phot_rp_mean_mag", "rp", "mag_rp", "rpmag"),
    "bp_rp": ("bp_rp", "bprp", "bp-rp"),
    "ref_epoch": ("ref_epoch", "epoch", "obsdate"),
}
"""Column names that are understood without a mapping (any case); the first that exists is taken."""

_NO_MAGNITUDE = ("ra", "dec", "pmra", "pmdec", "ref_epoch")
_MJD_J2000 = 51544.5


@dataclass(slots=True)
class CatalogTable:
    """Stars of a catalogue within a cone, in the order of the file.

    Attributes
    ----------
    ra, dec : (n,) float64 [deg], ICRS at `ref_epoch`.
    pmra, pmdec : (n,) float64 [mas/yr], pmra includes cos(dec); 0 where unknown.
    mags : dict, name -> (n,) float64 [mag], NaN where unknown; ``bp_rp`` is a colour.
    ref_epoch : (n,) float64 [yr], Julian.
    path : str, the file;  rows_in_file : int, all its rows.
    centre_deg, radius_deg : the cone.
    """

    ra: F64
    dec: F64
    pmra: F64
    pmdec: F64
    mags: dict[str, F64]
    ref_epoch: F64
    path: str = ""
    rows_in_file: int = 0
    centre_deg: tuple[float, float] = (0.0, 0.0)
    radius_deg: float = 180.0
    columns: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ra)

    def positions_at(self, mjd: float) -> tuple[F64, F64]:
        """Return right ascension and declination [deg] at `mjd`, proper motion applied along great circles."""
        years = 2000.0 + (mjd - _MJD_J2000) / 365.25 - self.ref_epoch
        a, d = np.radians(self.ra), np.radians(self.dec)
        sa, ca, sd, cd = np.sin(a), np.cos(a), np.sin(d), np.cos(d)
        to_rad = np.radians(1.0 / 3.6e6) * years
        east = np.stack([-sa, ca, np.zeros_like(a)], axis=-1)
        north = np.stack([-sd * ca, -sd * sa, cd], axis=-1)
        v = (np.stack([cd * ca, cd * sa, sd], axis=-1)
             + (self.pmra * to_rad)[:, None] * east + (self.pmdec * to_rad)[:, None] * north)
        v /= np.linalg.norm(v, axis=-1, keepdims=True)
        return (np.mod(np.degrees(np.arctan2(v[:, 1], v[:, 0])), 360.0),
                np.degrees(np.arctan2(v[:, 2], np.hypot(v[:, 0], v[:, 1]))))

    def magnitude(self, name: str) -> F64:
        """Return a magnitude, or a colour: ``bp_rp`` is the column or the difference ``bp`` - ``rp``.

        Raises
        ------
        BadInput
            The catalogue has neither.
        """
        if name in self.mags:
            return self.mags[name]
        for sep in ("_", "-"):
            blue, found, red = name.partition(sep)
            if found and blue in self.mags and red in self.mags:
                return self.mags[blue] - self.mags[red]
        if name == "bp" and {"bp_rp", "rp"} <= set(self.mags):
            return self.mags["bp_rp"] + self.mags["rp"]
        raise BadInput(self.path, f"magnitude '{name}' of the catalogue", "a column (map it in catalog.columns)",
                       f"magnitudes {', '.join(sorted(self.mags)) or 'none'}")


def read_catalog(spec: Mapping[str, Any], ra: float, dec: float, radius_deg: float) -> CatalogTable:
    """Read the stars within a cone.

    Parameters
    ----------
    spec : mapping
        ``path`` (FITS, Parquet or ECSV), ``columns`` (our name -> column of the file; names other than ra, dec,
        pmra, pmdec, ref_epoch are magnitudes), ``angle_unit`` (``deg`` or ``rad``, of ra and dec),
        ``ref_epoch`` [yr].
    ra, dec : float
        Centre of the cone, ICRS [deg].
    radius_deg : float
        Its radius [deg]. Right ascensions wrap and poles are inside like any other place.

    Raises
    ------
    BadInput
        The file is missing, unreadable, of unknown kind, or lacks a column.
    ConfigError
        ``angle_unit`` is neither ``deg`` nor ``rad``.
    """
    path = Path(str(spec["path"])).expanduser()
    if not path.is_file():
        raise BadInput(path, "catalogue", "a readable file", "none")
    unit = str(spec.get("angle_unit", "deg"))
    if unit not in ("deg", "rad"):
        raise ConfigError(f"catalog.angle_unit: expected deg or rad, found {unit!r}")
    open_file = _opener(path)
    names, column = open_file(path)
    chosen = _map_columns(path, names, dict(spec.get("columns") or {}))
    scale = 180.0 / np.pi if unit == "rad" else 1.0
    all_ra, all_dec = _floats(column(chosen["ra"])) * scale, _floats(column(chosen["dec"])) * scale
    if all_dec.size and not np.nanmax(np.abs(all_dec)) <= 90.0 + 1e-9:
        raise BadInput(path, f"declinations in column '{chosen['dec']}'",
                       "within ±90 degrees (see catalog.angle_unit)", f"up to {np.nanmax(np.abs(all_dec)):.6g}")
    keep = np.flatnonzero(_inside(all_ra, all_dec, ra, dec, radius_deg))

    def values(name: str, default: float) -> F64:
        if name not in chosen:
            return np.full(len(keep), default)
        v = _floats(column(chosen[name]))[keep]
        return np.where(np.isfinite(v), v, default)

    epoch = values("ref_epoch", float(spec.get("ref_epoch", 2016.0)))
    # some catalogues keep their epoch as mjd
    epoch = np.where(epoch > 10_000, 2000.0 + (epoch - _MJD_J2000) / 365.25, epoch)
    if len(epoch) and not (epoch.min() > 1800 and epoch.max() < 2200):
        raise BadInput(path, "epoch of the positions (catalog.ref_epoch)", "Julian years between 1800 and 2200, or mjd",
                       f"{epoch.min():g} to {epoch.max():g}")
    mags = {name: _floats(column(c))[keep] for name, c in chosen.items() if name not in _NO_MAGNITUDE}
    return CatalogTable(
        ra=np.mod(all_ra[keep], 360.0), dec=all_dec[keep], pmra=values("pmra", 0.0), pmdec=values("pmdec", 0.0),
        mags=mags, ref_epoch=epoch, path=str(path),
        rows_in_file=len(all_ra), centre_deg=(ra, dec), radius_deg=radius_deg, columns=chosen)


def _inside(ra: F64, dec: F64, ra0: float, dec0: float, radius_deg: float) -> npt.NDArray[np.bool_]:
    """Haversine cut, exact for small radii, at the poles and across right ascension 0."""
    near = np.abs(dec - dec0) <= radius_deg + 1e-9
    d1, d0 = np.radians(dec[near]), np.radians(dec0)
    h = (np.sin((d1 - d0) / 2) ** 2
         + np.cos(d1) * np.cos(d0) * np.sin(np.radians(ra[near] - ra0) / 2) ** 2)
    out = np.zeros(len(ra), bool)
    out[near] = h <= np.sin(np.radians(min(radius_deg, 180.0)) / 2) ** 2
    return out


def _floats(values: Any) -> F64:
    """Float64 in native byte order, masked values NaN."""
    if np.ma.isMaskedArray(values):
        return np.ma.filled(values.astype(np.float64), np.nan)
    return np.asarray(values).astype(np.float64)


def _map_columns(path: Path, names: list[str], given: dict[str, str]) -> dict[str, str]:
    """Return our name -> the file's column, from the mapping, else by `ALIASES`."""
    lower = {n.lower(): n for n in reversed(names)}
    out: dict[str, str] = {}
    for name, column in given.items():
        if column not in names:
            raise BadInput(path, f"column '{column}' (catalog.columns.{name})", "in the catalogue",
                           f"columns {', '.join(names)}")
        out[name] = column
    for name, candidates in ALIASES.items():
        found = [lower[c] for c in candidates if c in lower]
        if name not in out and found:
            out[name] = found[0]
    for name in ("ra", "dec"):
        if name not in out:
            raise BadInput(path, f"column for {name}", "one (map it in catalog.columns)",
                           f"columns {', '.join(names)}")
    return out


_Opener = Callable[[Path], "tuple[list[str], Callable[[str], Any]]"]


def _opener(path: Path) -> _Opener:
    with path.open("rb") as f:
        start = f.read(9)
    if start.startswith(b"SIMPLE"):
        return _open_fits
    if start.startswith(b"PAR1"):
        return _open_parquet
    if start.startswith(b"# %ECSV"):
        return _open_ecsv
    if start.startswith(b"\x1f\x8b"):
        return _open_fits
    raise BadInput(path, "kind of catalogue file", "FITS, Parquet or ECSV", f"a file that begins with {start!r}")


def _open_fits(path: Path) -> tuple[list[str], Callable[[str], Any]]:
    """First binary table that has positions (so LDAC files work); the last table if none does."""
    import warnings

    from astropy.io import fits

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with fits.open(path, memmap=True) as hdus:
                tables = [h for h in hdus if isinstance(h, fits.BinTableHDU) and h.columns is not None]
                if not tables:
                    raise BadInput(path, "catalogue", "a FITS binary table", "none in the file")
                known = set(ALIASES["ra"])
                best = next((h for h in tables if known & {n.lower() for n in h.columns.names}), tables[-1])
                data = best.data
                return list(best.columns.names), lambda name: np.asarray(data[name])
    except (OSError, ValueError, TypeError) as err:
        raise BadInput(path, "catalogue", "a readable FITS table", err) from None


def _open_parquet(path: Path) -> tuple[list[str], Callable[[str], Any]]:
    try:
        import pyarrow
        import pyarrow.parquet as pq
    except ImportError:
        raise BadInput(path, "catalogue in Parquet", "the package pyarrow: pip install 'seechange-mpi[local]'",
                       "it is not installed") from None
    try:
        file = pq.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as err:
        raise BadInput(path, "catalogue", "a readable Parquet file", err) from None
    return list(file.schema_arrow.names), lambda name: file.read([name]).column(0).to_numpy()


def _open_ecsv(path: Path) -> tuple[list[str], Callable[[str], Any]]:
    from astropy.table import Table

    try:
        table = Table.read(path, format="ascii.ecsv")
    except Exception as err:  # noqa: BLE001 - the reader raises many kinds; all mean an unreadable table
        raise BadInput(path, "catalogue", "a readable ECSV table", err) from None

    def column(name: str) -> Any:
        c = table[name]
        return np.ma.asarray(c) if hasattr(c, "mask") else np.asarray(c)

    return list(table.colnames), column

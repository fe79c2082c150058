"""Read star catalogues around a position, with column mapping, units, proper motions, parallaxes and errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seechange_mpi.io.catalog_files import OpenTable, floats, open_table, whole_numbers
from seechange_mpi.model.errors import BadInput, ConfigError

F64 = npt.NDArray[np.float64]

ALIASES: dict[str, tuple[str, ...]] = {
    "ra": ("ra", "ra_deg", "ra_icrs", "raj2000", "alpha_j2000", "x_world", "xwin_world", "coord_ra"),
    "dec": ("dec", "dec_deg", "de_icrs", "dej2000", "delta_j2000", "y_world", "ywin_world", "coord_dec"),
    "pmra": ("pmra", "pmra_masyr", "pm_ra_cosdec", "pm_ra"),
    "pmdec": ("pmdec", "pmde", "pmdec_masyr", "pm_dec"),
    "parallax": ("parallax", "plx"),
    "ra_error": ("ra_error", "e_ra_icrs", "erra_world", "errawin_world", "coord_raerr"),
    "dec_error": ("dec_error", "e_de_icrs", "errb_world", "errbwin_world", "coord_decerr"),
    "pmra_error": ("pmra_error", "e_pmra", "pm_raerr"),
    "pmdec_error": ("pmdec_error", "e_pmde", "pm_decerr"),
    "ruwe": ("ruwe",),
    "g": ("phot_g_mean_mag", "g", "mag_g", "gmag", "mag"),
    "bp": ("phot_bp_mean_mag", "bp", "mag_bp", "bpmag"),
    "rp": ("phot_rp_mean_mag", "rp", "mag_rp", "rpmag"),
    "bp_rp": ("bp_rp", "bprp", "bp-rp"),
    "g_err": ("phot_g_mean_mag_error", "g_err", "g_error", "e_gmag", "mag_g_err", "magerr_g"),
    "bp_err": ("phot_bp_mean_mag_error", "bp_err", "bp_error", "e_bpmag", "mag_bp_err", "magerr_bp"),
    "rp_err": ("phot_rp_mean_mag_error", "rp_err", "rp_error", "e_rpmag", "mag_rp_err", "magerr_rp"),
    "g_snr": ("phot_g_mean_flux_over_error",),
    "bp_snr": ("phot_bp_mean_flux_over_error",),
    "rp_snr": ("phot_rp_mean_flux_over_error",),
    "ref_epoch": ("ref_epoch", "epoch", "obsdate"),
}
"""Column names that are understood without a mapping (any case); the first that exists is taken."""

EXCERPT_SUFFIX = ".excerpt.fits"
"""Files of `catalog_excerpt`."""
ASTROMETRY = ("parallax", "ra_error", "dec_error", "pmra_error", "pmdec_error", "ruwe")
"""Columns beside position and proper motion that are no magnitudes."""
_NO_MAGNITUDE = ("ra", "dec", "pmra", "pmdec", "ref_epoch", "id", *ASTROMETRY)
_UNITS = {"ra": "deg", "dec": "deg", "pmra": "mas/yr", "pmdec": "mas/yr", "parallax": "mas", "ra_error": "mas",
          "dec_error": "mas", "pmra_error": "mas/yr", "pmdec_error": "mas/yr"}
_MJD_J2000 = 51544.5
_RUWE_LIMIT = 1.4
_WOBBLE_MAS = 5.0
_UNKNOWN_PM_MAS_YR = 8.0


@dataclass(slots=True)
class CatalogTable:
    """Stars of a catalogue within a cone, in the order of the file.

    Attributes
    ----------
    ra, dec : (n,) float64 [deg], ICRS at `ref_epoch`.
    pmra, pmdec : (n,) float64 [mas/yr], pmra includes cos(dec); 0 where unknown.
    mags : dict, name -> (n,) float64 [mag], NaN where unknown; ``bp_rp`` is a colour, ``g_err`` the error of ``g``,
        ``g_snr`` its signal-to-noise ratio.
    ref_epoch : (n,) float64 [yr], Julian.
    path : str, the file;  rows_in_file : int, all its rows.
    centre_deg, radius_deg : the cone.
    columns : our name -> the file's column.
    astrometry : dict, name of `ASTROMETRY` -> (n,) float64 [mas, mas/yr, or none], NaN where unknown; ra_error
        includes cos(dec).
    ids : (n,) int64, numbers of the sources in their survey; None where no column ``id`` was asked for.
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
    astrometry: dict[str, F64] = field(default_factory=dict)
    ids: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ra)

    def positions_at(self, mjd: float) -> tuple[F64, F64]:
        """Return right ascension and declination [deg] at `mjd` as seen from the Earth.

        Proper motion is applied along great circles, and the parallax where there is one.
        """
        years = self._years(mjd)
        a, d = np.radians(self.ra), np.radians(self.dec)
        sa, ca, sd, cd = np.sin(a), np.cos(a), np.sin(d), np.cos(d)
        to_rad = np.radians(1.0 / 3.6e6) * years
        east = np.stack([-sa, ca, np.zeros_like(a)], axis=-1)
        north = np.stack([-sd * ca, -sd * sa, cd], axis=-1)
        v = (np.stack([cd * ca, cd * sa, sd], axis=-1)
             + (self.pmra * to_rad)[:, None] * east + (self.pmdec * to_rad)[:, None] * north)
        if "parallax" in self.astrometry and len(a):
            # a parallax of less than nothing is noise; so is most of a small one, but that is no larger than its error
            parallax = np.radians(np.maximum(np.nan_to_num(self.astrometry["parallax"]), 0.0) / 3.6e6)
            v -= parallax[:, None] * earth_position_au(mjd)
        v /= np.linalg.norm(v, axis=-1, keepdims=True)
        return (np.mod(np.degrees(np.arctan2(v[:, 1], v[:, 0])), 360.0),
                np.degrees(np.arctan2(v[:, 2], np.hypot(v[:, 0], v[:, 1]))))

    def variances_at(self, mjd: float) -> F64:
        """Return (n, 2) variances along right ascension and declination at `mjd` [mas²].

        Errors of position and proper motion are added in squares; zero where the catalogue tells none. Where it has
        proper motions, but not of this star, 8 mas/yr are assumed. With a RUWE above 1.4 (a star that one moving point
        does not describe; Lindegren et al. 2021, A&A 649, A2) errors are multiplied by the RUWE, and 5 mas per unit of
        it added for the wobble of a binary.
        """
        years2 = self._years(mjd) ** 2
        out = np.zeros((len(self), 2))
        for k, axis in enumerate(("ra", "dec")):
            pm_error = self._known(f"pm{axis}_error")
            if f"pm{axis}_error" in self.astrometry:
                pm_error = np.where(np.isfinite(self.astrometry[f"pm{axis}_error"]), pm_error, _UNKNOWN_PM_MAS_YR)
            out[:, k] = self._known(f"{axis}_error") ** 2 + pm_error**2 * years2
        ruwe = self._known("ruwe")
        bad = np.where(ruwe > _RUWE_LIMIT, ruwe, 0.0)[:, None]
        return np.where(bad > 0, out * bad**2 + (_WOBBLE_MAS * bad) ** 2, out)

    def _known(self, name: str) -> F64:
        values = self.astrometry.get(name)
        return np.zeros(len(self)) if values is None else np.where(np.isfinite(values), values, 0.0)

    def _years(self, mjd: float) -> F64:
        return np.asarray(2000.0 + (mjd - _MJD_J2000) / 365.25 - self.ref_epoch)

    def chosen(self, rows: npt.NDArray[Any]) -> CatalogTable:
        """Return the stars of some rows (indices or a mask)."""
        return CatalogTable(
            self.ra[rows], self.dec[rows], self.pmra[rows], self.pmdec[rows],
            {k: v[rows] for k, v in self.mags.items()}, self.ref_epoch[rows], self.path, self.rows_in_file,
            self.centre_deg, self.radius_deg, dict(self.columns), {k: v[rows] for k, v in self.astrometry.items()},
            None if self.ids is None else self.ids[rows])

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

    def magnitude_error(self, name: str) -> F64:
        """Return the error of a magnitude as the catalogue states it, from ``<name>_err`` or ``<name>_snr``; 0 where
        it is not stated [mag]."""
        error = self.mags.get(f"{name}_err")
        if error is None and f"{name}_snr" in self.mags:
            with np.errstate(divide="ignore", invalid="ignore"):
                error = 2.5 / np.log(10.0) / self.mags[f"{name}_snr"]
        return np.zeros(len(self)) if error is None else np.where(np.isfinite(error), error, 0.0)


def earth_position_au(mjd: float) -> F64:
    """Return (3,) barycentric position of the Earth, ICRS axes [au] (ERFA's series, good to 10⁻⁷)."""
    import erfa

    return np.asarray(erfa.epv00(2400000.5, mjd)[1]["p"], np.float64)


def read_catalog(spec: Mapping[str, Any], ra: float, dec: float, radius_deg: float) -> CatalogTable:
    """Read the stars within a cone.

    Parameters
    ----------
    spec : mapping
        ``path`` (a file, see `catalog_files.open_table`, a folder of `catalog_folder`, an excerpt), or ``url`` (see
        `catalog_http.fetch_cone`); ``columns`` (our name ->
        column of the file; ``id`` is a whole number, names that are not positions, motions or their errors are
        magnitudes), ``angle_unit``
        (``deg`` or ``rad``, of ra and dec), ``units`` (our name -> unit of its column, where the file does not tell
        it), ``ref_epoch`` [yr], ``min_mag``, ``max_mag``.
    ra, dec : float
        Centre of the cone, ICRS [deg].
    radius_deg : float
        Its radius [deg]. Right ascensions wrap and poles are inside like any other place.

    Raises
    ------
    BadInput
        The file is missing, unreadable, of unknown kind, or lacks a column.
    ConfigError
        A unit is not understood.
    """
    if not spec.get("path"):
        from seechange_mpi.io.catalog_http import fetch_cone

        return within_limits(fetch_cone(spec, ra, dec, radius_deg), spec)
    path = Path(str(spec["path"])).expanduser()
    if path.name.endswith(EXCERPT_SUFFIX):
        from seechange_mpi.io.catalog_excerpt import read_excerpt

        return read_excerpt(path, spec, (ra, dec, radius_deg))
    if path.is_dir():
        from seechange_mpi.io.catalog_folder import read_folder

        return within_limits(read_folder(path, ra, dec, radius_deg), spec)
    unit = str(spec.get("angle_unit", "deg"))
    if unit not in ("deg", "rad"):
        raise ConfigError(f"catalog.angle_unit: expected deg or rad, found {unit!r}")
    table = open_table(path, ALIASES["ra"])
    return within_limits(table_to_catalog(table, path, spec, (ra, dec), radius_deg), spec)


def brightness(catalog: CatalogTable) -> F64:
    """Return the magnitudes by which a catalogue is ordered: G, else RP, BP, mag, the first by name, zeros."""
    name = next((k for k in ("g", "rp", "bp", "mag", *sorted(catalog.mags)) if k in catalog.mags), None)
    return catalog.mags[name] if name else np.zeros(len(catalog))


def within_limits(catalog: CatalogTable, spec: Mapping[str, Any]) -> CatalogTable:
    """Return the stars between ``min_mag`` and ``max_mag``; stars of unknown magnitude are kept."""
    low, high = spec.get("min_mag"), spec.get("max_mag")
    if low is None and high is None:
        return catalog
    mag = brightness(catalog)
    with np.errstate(invalid="ignore"):
        outside = (mag < (-np.inf if low is None else float(low))) | (mag > (np.inf if high is None else float(high)))
    return catalog.chosen(~outside)


def table_to_catalog(table: OpenTable, path: Path | str, spec: Mapping[str, Any], centre: tuple[float, float],
                     radius_deg: float) -> CatalogTable:
    """Return the stars of an open table within a cone; see `read_catalog`."""
    chosen = map_columns(path, table.names, dict(spec.get("columns") or {}))
    scale = 180.0 / np.pi if str(spec.get("angle_unit", "deg")) == "rad" else 1.0
    all_ra, all_dec = floats(table.column(chosen["ra"])) * scale, floats(table.column(chosen["dec"])) * scale
    if all_dec.size and not np.nanmax(np.abs(all_dec)) <= 90.0 + 1e-9:
        raise BadInput(path, f"declinations in column '{chosen['dec']}'",
                       "within ±90 degrees (see catalog.angle_unit)", f"up to {np.nanmax(np.abs(all_dec)):.6g}")
    keep = np.flatnonzero(inside_cone(all_ra, all_dec, *centre, radius_deg))
    given = dict(spec.get("units") or {})
    for name in given:
        if name not in chosen:
            raise ConfigError(f"catalog.units.{name}: no such column; there are: {', '.join(sorted(chosen))}")

    def values(name: str, default: float) -> F64:
        if name not in chosen:
            return np.full(len(keep), default)
        v = floats(table.column(chosen[name]))[keep]
        unit = given.get(name) or (table.units.get(chosen[name]) if name in _UNITS else None)
        if unit is not None:
            v = _converted(v, str(unit), name)
        return np.where(np.isfinite(v), v, default)

    epoch = values("ref_epoch", float(spec.get("ref_epoch", 2016.0)))
    # some catalogues keep their epoch as mjd
    epoch = np.where(epoch > 10_000, 2000.0 + (epoch - _MJD_J2000) / 365.25, epoch)
    if len(epoch) and not (epoch.min() > 1800 and epoch.max() < 2200):
        raise BadInput(path, "epoch of the positions (catalog.ref_epoch)", "Julian years between 1800 and 2200, or mjd",
                       f"{epoch.min():g} to {epoch.max():g}")
    mags = {name: values(name, np.nan) for name in chosen if name not in _NO_MAGNITUDE}
    return CatalogTable(
        ra=np.mod(all_ra[keep], 360.0), dec=all_dec[keep], pmra=values("pmra", 0.0), pmdec=values("pmdec", 0.0),
        mags=mags, ref_epoch=epoch, path=str(path), rows_in_file=len(all_ra), centre_deg=centre,
        radius_deg=radius_deg, columns=chosen,
        astrometry={name: values(name, np.nan) for name in ASTROMETRY if name in chosen},
        ids=whole_numbers(table.column(chosen["id"])[keep], path, chosen["id"]) if "id" in chosen else None)


def _converted(values: F64, unit: str, name: str) -> F64:
    """Values in our unit: mas, mas/yr, or magnitudes (flux densities become AB magnitudes)."""
    from astropy import units as u

    try:
        given = u.Unit(unit)
        if name in _UNITS:
            return np.asarray((values * given).to_value(_UNITS[name]), np.float64)
        if given.is_equivalent(u.Jy):
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.asarray(-2.5 * np.log10((values * given).to_value(u.Jy)) + 8.9, np.float64)
        if given in (u.mag, u.yr, u.d, u.dimensionless_unscaled):
            return values
    except (ValueError, TypeError):
        pass
    expected = _UNITS.get(name, "mag, or a flux density such as nJy")
    raise ConfigError(f"catalog.units.{name}: expected a unit of {expected}, found {unit!r}")


def inside_cone(ra: F64, dec: F64, ra0: float, dec0: float, radius_deg: float) -> npt.NDArray[np.bool_]:
    """Haversine cut, exact for small radii, at the poles and across right ascension 0."""
    near = np.abs(dec - dec0) <= radius_deg + 1e-9
    d1, d0 = np.radians(dec[near]), np.radians(dec0)
    h = (np.sin((d1 - d0) / 2) ** 2
         + np.cos(d1) * np.cos(d0) * np.sin(np.radians(ra[near] - ra0) / 2) ** 2)
    out = np.zeros(len(ra), bool)
    out[near] = h <= np.sin(np.radians(min(radius_deg, 180.0)) / 2) ** 2
    return out


def map_columns(path: Path | str, names: list[str], given: dict[str, str]) -> dict[str, str]:
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

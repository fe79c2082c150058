"""Settings of what is made from many exposures: positions of objects and forced photometry."""

from __future__ import annotations

from seechange_mpi.config.parameters import Parameters, par


class PositioningSettings(Parameters):
    """Mean positions of objects."""

    section = "positioning"
    sncut: float = par(3.0, "least S/N of a measurement that counts", ge=0)
    sigma_clip: float = par(3.0, "measurements farther off than this, on either axis, are left out", unit="sigma",
                            gt=0)
    weight_power: float = par(1.0, "weights are S/N to this power: 0 = equal, 1 = robust against errors of the "
                                   "astrometry, 2 = best where noise alone rules", ge=0, le=2)
    filter: str | None = par(None, "only measurements in this filter; null = all")
    until_mjd: float | None = par(None, "only measurements up to this time; null = all", unit="d")
    use_bad: bool = par(False, "measurements that failed a threshold count too")


class ForcedPhotometrySettings(Parameters):
    """Photometry at the positions of objects, whether or not anything was detected there."""

    section = "forcedphot"
    radius_fwhms: float = par(1.5, "radius of the disc in which the PSF is fitted", unit="FWHM", gt=0.5)
    aperture_fwhms: float = par(1.0, "radius of the aperture; its flux is corrected for the PSF beyond it",
                                unit="FWHM", gt=0.3)
    limit_sigma: float = par(5.0, "non-detection limits are this many times the local error", unit="sigma", gt=0)
    bright_snr: float = par(500.0, "a source this many times the error of a flux makes it doubtful, since some per "
                                   "mille of its light are left in the difference", gt=0)
    bright_fwhms: float = par(4.0, "when it is closer than this; 0 = never", unit="FWHM", ge=0)
    move_arcsec: float = par(0.2, "measured again when the object's position has moved by more than this",
                             unit="arcsec", critical=False, gt=0)

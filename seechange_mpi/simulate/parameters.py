"""What a simulated survey looks like."""

from __future__ import annotations

from seechange_mpi.config.parameters import Parameters, par


class SimulationParameters(Parameters):
    """Everything that shapes a simulated survey; the same seed gives the same files."""

    section = "simulate"
    camera: str = par("simulated", "camera name or YAML file with literal data sections")
    seed: int = par(1, "seed of all random numbers", ge=0)
    epochs: int = par(3, "number of exposures of the field; transients appear after the first", ge=1)
    cadence_days: float = par(3.0, "time between exposures", unit="d", gt=0)
    start_mjd: float = par(61000.1, "mjd of the first exposure", unit="d")
    exp_time_s: float = par(45.0, "exposure time", unit="s", gt=0)
    filter: str = par("r", "filter of all exposures (cameras with one filter per section use theirs)")
    ra_deg: float = par(150.1, "field centre", unit="deg")
    dec_deg: float = par(2.2, "field centre", unit="deg", ge=-89, le=89)
    zero_point_e: float = par(30.0, "magnitude that gives one electron per exposure", unit="mag")
    transparency: list[float] = par([1.0, 0.93, 1.04], "throughput of each epoch, repeated as needed")
    seeing_arcsec: list[float] = par([1.9, 2.15, 2.0], "FWHM of each epoch, repeated as needed", unit="arcsec")
    sky_e: list[float] = par([380.0, 430.0, 400.0], "sky of each epoch, repeated as needed", unit="e-/pix")
    moffat_beta: float = par(3.5, "Moffat exponent of the PSF", gt=1.5)
    psf_variation: float = par(0.015, "relative change of the FWHM from centre to edge of the focal plane", ge=0)
    ellipticity: float = par(0.02, "largest shear of the PSF", ge=0, lt=0.5)
    distortion_arcsec: float = par(0.6, "radial distortion at the corner of the focal plane", unit="arcsec")
    pointing_error_arcsec: float = par(2.5, "rms error of the header's position, per axis", unit="arcsec", ge=0)
    dither_arcsec: float = par(6.0, "rms dither between epochs, per axis", unit="arcsec", ge=0)
    stars_per_sq_deg: float = par(9000.0, "stars between the magnitude limits", unit="deg-2", gt=0)
    star_slope: float = par(0.3, "slope of log counts per magnitude", gt=0)
    bright_mag: float = par(13.8, "brightest star", unit="mag")
    faint_mag: float = par(22.5, "faintest star", unit="mag")
    catalog_mag: float = par(20.5, "faintest star in the catalogue", unit="mag")
    galaxies_per_sq_deg: float = par(1400.0, "galaxies", unit="deg-2", ge=0)
    transients_per_section: int = par(10, "point sources absent in the first epoch", ge=0)
    variables_per_section: int = par(4, "stars that change by 0.5-1.5 mag after the first epoch; every other one "
                                         "fades", ge=0)
    pulsating_per_section: int = par(0, "stars whose magnitude follows a sine in time", ge=0)
    pulsating_mag: list[float] = par([19.0, 22.0], "range of their mean magnitudes", unit="mag")
    pulsating_amplitude: list[float] = par([0.1, 0.8], "range of the amplitudes of the sine", unit="mag")
    pulsating_period_d: list[float] = par([5.0, 40.0], "range of their periods", unit="d")
    movers_per_section: int = par(2, "moving objects, at another place in every epoch", ge=0)
    transient_mag: list[float] = par([18.8, 22.2], "range of transient magnitudes", unit="mag")
    cosmic_rays_per_mpix: float = par(15.0, "cosmic rays per million pixels and exposure", ge=0)
    bad_columns_per_amplifier: int = par(1, "dead columns", ge=0)
    trails_per_exposure: int = par(1, "satellite trails through the middle of the field", ge=0)
    trail_brightness: list[float] = par([1.0, 20.0], "range of the peaks of trails, in units of the sky's noise")
    full_well_e: float = par(0.0, "charge above this runs along the column; 0 = no end to the well", unit="e-", ge=0)
    dark_e_per_s: float = par(0.0, "mean dark current", unit="e-/s/pix", ge=0)
    nonlinearity: float = par(0.0, "fraction of the counts that is lost at saturation", ge=0, lt=0.2)
    crosstalk: float = par(0.0, "share of an amplifier's counts that its neighbour sees", ge=0, lt=0.01)
    fringe_amplitude: float = par(0.0, "amplitude of fringes, in units of the sky", ge=0, lt=0.2)
    bias_level_adu: float = par(1000.0, "pedestal", unit="ADU", ge=0)

    def of_epoch(self, values: list[float], epoch: int) -> float:
        """Return the value of an epoch from a list that repeats."""
        return values[epoch % len(values)]

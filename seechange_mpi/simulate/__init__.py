"""An invented survey with known answers: raw exposures, calibration frames, catalogue, truth tables."""

"""Calibration frames made from raw exposures, one section at a time; knows neither MPI nor database."""

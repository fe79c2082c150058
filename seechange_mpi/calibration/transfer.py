"""Read noise and gain of every amplifier from pairs of equal exposures.

Read noise: the scatter of the difference of two biases over √2. Gain by photon transfer (Janesick 2001, Scientific
Charge-Coupled Devices, section 4): the variance of the difference of two flats, less that of the read noise, is their
signal over the gain. The difference cancels all that is fixed; the flats are brought to one level first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from seechange_mpi.calibration.corrections import Channel
from seechange_mpi.calibration.stack import FrameStack, robust_std
from seechange_mpi.model.products import F32

_MOST_PAIRS = 6


def _pairs(indices: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(indices[0::2], indices[1::2], strict=False))[:_MOST_PAIRS]


def read_noise_electrons(stack: FrameStack, indices: Sequence[int], channels: Sequence[Channel]) -> dict[str, float]:
    """Return amplifier -> read noise [e-, with the nominal gain], from pairs of biases in the order of time.

    The median of each row is taken off, and with it the noise of the overscan.
    """
    found: dict[str, list[float]] = {c.name: [] for c in channels}
    for a, b in _pairs(indices):
        difference = stack.read(a) - stack.read(b)
        for c in channels:
            part = difference[c.place]
            part = part - np.median(part, axis=1, keepdims=True)
            found[c.name].append(robust_std(part) / np.sqrt(2) / c.factor * c.gain)
    return {name: float(np.median(v)) for name, v in found.items() if v}


def gain_of_flats(
    stack: FrameStack, indices: Sequence[int], channels: Sequence[Channel]
) -> dict[str, float]:
    """Return amplifier -> gain [e-/ADU] from pairs of flats, gain-matched with the nominal gains."""
    found: dict[str, list[float]] = {c.name: [] for c in channels}
    for a, b in _pairs(indices):
        first, second = stack.read(a), stack.read(b)
        ratio = np.float32(np.nanmedian(first[::2, ::2]) / np.nanmedian(second[::2, ::2]))
        if not 0.5 < ratio < 2:
            continue
        for c in channels:
            value = _gain_of_pair(first[c.place], second[c.place] * ratio, float(ratio), c)
            if np.isfinite(value):
                found[c.name].append(value)
    return {name: float(np.median(v)) for name, v in found.items() if v}


def _gain_of_pair(first: F32, second: F32, ratio: float, channel: Channel) -> float:
    """Gain from flats of one level, the second multiplied by `ratio` (its variance is `ratio` times larger)."""
    signal = 0.5 * (first + second)
    good = signal > 0.2 * float(np.nanmedian(signal))
    if good.sum() < 1000:
        return float("nan")
    s = signal[good]
    # per ADU of signal the pair has the variance (1 + ratio) factor / gain
    scatter = robust_std((first[good] - second[good]) / np.sqrt(s)) ** 2
    read = channel.read_variance * (1 + ratio**2) * float(np.mean(1 / s))
    return channel.factor * (1 + ratio) / max(scatter - read, 1e-12)

"""How much less an item counts the further it stands from the end of a session."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from seqrec_prompt.recommenders.base import FloatArray
from seqrec_prompt.recommenders.settings import Decay

POWERS: dict[Decay, int] = {"scaling_linear": 1, "scaling_quadratic": 2, "scaling_cubic": 3}
LEAST = 1e-5  # the linear decays end here, so that no item is worth nothing


def decay_weights(
    decay: Decay, place: npt.NDArray[np.integer], length: npt.NDArray[np.integer] | np.integer | int
) -> FloatArray:
    """Weight of items that are `place`-th from the end (the last is 1) of sessions of `length` items.

    With place i and length n (Harte et al., RecSys'23; Ludewig & Jannach 2018 use the same shapes for V-SKNN):

      none 1 · constant_linear max(1e-5, 1 - 0.1(i-1)) · scaling_linear max(1e-5, 1 - (i-1)/n) ·
      scaling_quadratic and scaling_cubic its square and cube · log 1/(ln i + 1) · harmonic 1/i · harmonic_squared 1/i²
    """
    i = np.asarray(place, np.float64)
    if decay == "none":
        return np.ones_like(i)
    if decay == "constant_linear":
        return np.maximum(LEAST, 1 - 0.1 * (i - 1))
    if decay in POWERS:
        scaling: FloatArray = np.maximum(LEAST, 1 - (i - 1) / length) ** POWERS[decay]
        return scaling
    if decay == "log":
        return 1 / (np.log(i) + 1)
    return 1 / i if decay == "harmonic" else 1 / i**2

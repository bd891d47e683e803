"""What the law misses beyond the runs that it was fitted to, alike on most problems.

Fitted to short runs, the law lets losses fall too slowly in runs that are longer than all of these, and too much in
larger batches. Both are lines in logarithms, whose slopes differ between problems: every draw of the posterior has its
own. The correction was measured on forecasts from probes, to which it is added (not to what a search learns from its
trials).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

STEEPER, STEEPER_SD = 0.32, 0.22
"""How much more log loss falls than by the law, in steepnesses for every e-fold of examples beyond the longest run: its
mean over problems, and deviation. On nine of `benchmarks/prediction.py`, three probes each, it was 0.47, 0, 0.46, 0.29,
0.64, 0.18, 0.29, 0.26 and 0.26; without one of these the mean is 0.28 to 0.36. The deviation is a fifth more than
theirs, for problems unlike these."""
HIGHER, HIGHER_SD = 0.2, 0.2
"""How much higher log loss is than by the law, in steepnesses for every e-fold of the batch size beyond those that ran:
0.08, -0.15, 0.41, 0.25, 0.35, 0.27, 0.08, 0.26 and 0.25 on the same problems; without one of them 0.17 to 0.24."""
MEASURED = 64.0
"""Both were measured so far beyond the runs, as a factor; they do not grow further."""


def missed_beyond(longer: Floats, larger: Floats, scores: tuple[Floats, Floats]) -> Floats:
    """What to add to log losses by the law, in steepnesses, (n, k).

    Args:
        longer: log of the examples over those of the longest run, (k,).
        larger: log of the batch size over the largest that ran, where it is above that; its mean over the examples of
            the run where the batch size changes, (k,).
        scores: standard normal, of both slopes in every draw, each (n,).
    """
    by_length, by_size = -STEEPER - STEEPER_SD * scores[0], HIGHER + HIGHER_SD * scores[1]
    most = math.log(MEASURED)
    added = np.outer(by_length, np.clip(longer, 0.0, most))
    return np.asarray(added + np.outer(by_size, np.clip(larger, 0.0, most)))

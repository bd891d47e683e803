"""Handwritten digits, 8x8 (they ship with scikit-learn): a multilayer perceptron with SGD, as in the demo."""

from __future__ import annotations

import sys
from pathlib import Path

from batchopt.cli.digits import make_task

task = make_task()

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from flow import Settings, run_study

    run_study(__file__, full=Settings(examples=200_000, loss=0.03), smoke=Settings(examples=100_000, loss=0.1))

"""Of `scale.py`: what the law of the shortest language models chooses for longer ones, and what probes of one cost."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from steplaw import TABLE, fitted, outcome, points_of, read, usable

from batchopt.probing.budget import SHARES, choose_batch_sizes, price_of, short_run_budget

PARAMETERS, TOKENS, SEQUENCE = 10**9, 10**11, 2048
"""Of the language model whose probes are priced."""
FLOPS = 0.4 * 989e12
"""Of an H100 in bf16, of which a well-kept training uses four tenths."""


def language_rows() -> list[dict[str, Any]]:
    """Settings that the law of the shortest runs of a model chooses for longer ones; none without the table."""
    path = Path(os.environ.get("BATCHOPT_DATA", ".")) / TABLE
    if not path.exists():
        print(f"no {path}: language models are left out (BATCHOPT_DATA names the folder that holds {TABLE})")
        return []
    rows = []
    for parameters, tables in sorted(read(path).items()):
        shortest, *longer = sorted(tables)
        law = fitted(usable(tables[shortest]))
        for tokens in longer:
            cells = tables[tokens]
            chosen = cells[int(np.argmin(law.log_losses(points_of(cells))[0]))]
            same = min(tables[shortest], key=lambda cell: cell.loss)
            kept = min(
                cells,
                key=lambda c: math.hypot(
                    math.log(c.batch_size / same.batch_size), math.log(c.learning_rate / same.learning_rate)
                ),
            )
            rows.append({
                "parameters": parameters,
                "tokens": tokens,
                "times_longer": tokens / shortest,
                "law": outcome(chosen, cells),
                "best_of_shortest": outcome(kept, cells),
            })  # fmt: skip
    return rows


def price_of_probe(part: float) -> dict[str, float]:
    """What a probe of a language model takes: 6 FLOPs per parameter and token, sequences as examples."""
    budget = round(part * TOKENS / SEQUENCE)
    sizes = choose_batch_sizes(budget, price_of(0.0), bounds=(1, 2**20), population=2**40)
    long = short_run_budget(budget) + 0.5 * SHARES["long runs"] * budget
    return {
        "part": part,
        "tokens": part * TOKENS,
        "gpu_hours": 6.0 * PARAMETERS * part * TOKENS / FLOPS / 3600.0,
        "small_batch_tokens": sizes.small * SEQUENCE,
        "large_batch_tokens": sizes.large * SEQUENCE,
        "longest_run_tokens": long * SEQUENCE,
        "steps_of_longest_run": math.floor(long / sizes.large),
    }

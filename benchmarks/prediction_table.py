"""What `prediction.py` prints."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from figures import factor, is_inside, number, percent


def print_table(rows: Sequence[dict[str, Any]], found: dict[str, Any]) -> None:
    """Print what was found."""
    print(f"{'problem':16}{'probe':>6}{'loss':>8}{'truth':>8}  predictions / truth, by seed (o: outside its interval)")
    for (name, budget, loss), group in grouped(rows).items():
        ratios = " ".join(_shown(cell) for cell in group)
        regrets = [goal["regret"] for cell in group for goal in cell["goals"].values()]
        median = float(np.median([math.inf if regret is None else regret for regret in regrets])) if regrets else None
        mark = " " if group[0]["counted"] else "?"
        told = "" if median is None else f"   regret {median:.0%}"
        print(f"{name:16}{budget:6g}{loss:8g}{group[0]['truth']:8.0f}{mark} {ratios}{told}")
    for budget, own in found["summary"].items():
        print_summary(budget, own)
    for row in rows:
        if row["failure"]:
            print(f"{row['problem']} {row['share']:g} {row['seed']}: {row['failure']}")
    print("\nmisses by more than a factor of 2 (median over seeds), and what the forecast says of them")
    for line in misses(rows):
        print(line)
    print_live(found["live"])


def grouped(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, float, float], list[dict[str, Any]]]:
    """Cells by problem, budget and loss."""
    cells: dict[tuple[str, float, float], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        for cell in row["losses"]:
            told = {key: row[key] for key in ("doubts", "lowest_observed")}
            cells[row["problem"], row["share"], cell["loss"]].append(cell | told)
    return cells


def misses(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each problem, budget and loss whose typical prediction is off by more than a factor of 2."""
    lines = []
    for (name, budget, loss), cells in grouped(rows).items():
        group = [cell for cell in cells if cell["counted"] and cell["prediction"]]
        if not group:
            continue
        ratio = float(np.median([cell["prediction"][0] / cell["truth"] for cell in group]))
        if factor(ratio, 1.0) <= 2.0:
            continue
        beyond = float(np.median([cell["lowest_observed"] / loss for cell in group]))
        held = sum(is_inside(cell["prediction"], cell["truth"]) for cell in group)
        doubted = sum(bool(cell["doubts"]) for cell in group)
        lines.append(
            f"{name:16}{budget:6g}{loss:8g}  {ratio:.2f} of the truth; the lowest loss seen was {beyond:.1f} times "
            f"the loss; in the interval {held} of {len(group)}, doubts raised in {doubted}"
        )
    return lines


def print_summary(budget: str, found: dict[str, Any]) -> None:
    """Print one budget's figures."""
    print(f"\nprobe of {budget}: {found['probes']} probes, {found['failed']} failed")
    print(f"  {'critical batch size':40}{'geometric mean':>16}{'worst':>8}{'coverage':>10}{'signed':>8}")
    for name, key in (("decayed runs", "critical_batch_size"), ("constant rates", "constant_rates")):
        own = found[key]
        label = f"{name} ({own['unanswered']} of {own['cells']} unanswered)"
        print(f"  {label:40}{_errors(own)}{percent(own['coverage']):>10}{number(own['signed']):>8}")
    print(f"  {'noise scale alone':40}{_errors(found['noise_scale'])}")
    print("  by problem: " + ", ".join(f"{n} {e:.2f}" for n, e in found["critical_batch_size"]["by_problem"].items()))
    print(f"  {'regret':40}{'median':>16}{'90 %':>8}{'worst':>8}{'never':>8}{'cases':>8}")
    every = {**found["regrets"], **{f"plan, {name}": own for name, own in found["regret_by_problem"].items()}}
    for name, own in every.items():
        told = [percent(own[key]) for key in ("median", "90th_percentile", "worst")]
        print(f"  {name:40}{told[0]:>16}{told[1]:>8}{told[2]:>8}{own['never']:>8}{own['cases']:>8}")
    print(
        f"  peak rate: final loss within 2 % of the best rate's in {percent(found['rate_within_2_percent'])}, 10 % in "
        f"{percent(found['rate_within_10_percent'])}; rate within a "
        f"factor of 2 of the best in {percent(found['rate_within_factor_2'])}, on average {number(found['rate_ratio'])}"
    )


def print_live(found: dict[str, Any]) -> None:
    """Print what single runs did beside what plans said of them."""
    print("\nlive, by the fixed schedule: final loss; by the adaptive one: cost until the loss over the predicted one")
    print(
        f"{'problem':16}{'runs':>5}{'|log error|':>12}{'signed':>8}{'covered':>9}{'arrived':>9}"
        f"   {'runs':>5}{'arrived':>9}{'covered':>9}{'cost 10, 50, 90 %':>20}{'missed decays':>15}"
    )
    for name, own in found.items():
        final, adaptive = own["final_loss"], own["adaptive"]
        costs = " ".join(f"{each:.2f}" for each in adaptive["cost_over_predicted"] or ())
        print(
            f"{name:16}{final['runs']:5}{number(final['median_absolute_log_error']):>12}"
            f"{number(final['median_log_error']):>8}{percent(final['coverage']):>9}{final['arrived']:9}"
            f"   {adaptive['runs']:5}{adaptive['arrived']:9}{adaptive['examples_in_interval']:9}{costs:>20}"
            f"{adaptive['missed_decays']:15}"
        )


def _errors(found: dict[str, Any]) -> str:
    return f"{number(found['geometric_mean']):>16}{number(found['worst']):>8}"


def _shown(cell: dict[str, Any]) -> str:
    if not cell["prediction"]:
        return "  -   "
    mark = " " if is_inside(cell["prediction"], cell["truth"]) else "o"
    return f"{cell['prediction'][0] / cell['truth']:5.2f}{mark}"

"""What a search spends until it has found a good setting: against Optuna's own, on recorded runs (`contest/`).

The score of a search is all the training that it paid for, until a completed trial is within 20 % of the best
configuration of a sweep, in units of that configuration's own cost: 1 would be to try it at once. With a probe, the
probe's price is paid first. Each study is kept as it ends, and the same call goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from contest.clock import MOST_TRIALS, search
from contest.contestants import RIVALS, Ours, Plain, our_study, rival_study
from contest.live import live_arena
from contest.replay import EXTRAS, Arena, design_arena, sweep_arena
from joblib import Parallel, delayed
from machine import machine, save
from truth.curves import FOLDER
from truth.design import DESIGNS, PRICE
from truth.problems import PROBLEMS

from batchopt import Forecast
from batchopt.evidence import ProbeReport
from batchopt.forecasting.law import SHAPE

HERE = Path(__file__).parent
RESULT = HERE / "results" / "search.json"
OURS, PROBED = "batchopt", "batchopt with a probe"
PROBE_SHARE, LEAST_PROBE = 0.5, 39_000
"""What a probe may spend, steps counted as a trial's are, in units of the best configuration's cost; and the smallest
budget that a probe takes at that price, in examples."""
SHARE_OF_WRONG = 0.1
"""Of the examples of the cheapest run, for the probes whose forecasts are made wrong."""
PROBE_SEEDS = (10, 11, 12, 13, 14)
"""Not those of the sweep."""
AGAINST_WRONG = "TPE + Median"
LIVE = ("digits_mlp", "digits_softmax")
"""Problems that train in seconds."""
WRONG_BY = 20.0
WRONG = {
    "true": (1.0, 1.0), "B_crit x20": (WRONG_BY, 1.0), "B_crit /20": (1 / WRONG_BY, 1.0),
    "rate x20": (1.0, WRONG_BY), "rate /20": (1.0, 1 / WRONG_BY),
    "both x20": (WRONG_BY, WRONG_BY), "both /20": (1 / WRONG_BY, 1 / WRONG_BY),
}  # fmt: skip
"""Forecasts that are wrong by these factors in the critical batch size and the learning rate."""


class Job(NamedTuple):
    """One study.

    Attributes:
        part: of the benchmark: "sweep", "+1", "+3", "workers 4", "workers 16", "live" or "wrong: ...".
        problem: its name.
        contestant: who searches.
        seed: of sampler, trials and ranges.
    """

    part: str
    problem: str
    contestant: str
    seed: int


def jobs_of(parts: Sequence[str], problems: Sequence[str], contestants: Sequence[str], seeds: int) -> list[Job]:
    """Every study of the parts that were asked for."""
    jobs = []
    for part in parts:
        own = [name for name in problems if name in DESIGNS] if part in ("+1", "+3") else problems
        own = [name for name in own if name in LIVE] if part == "live" else own
        who = [name for name in contestants if part in ("sweep", "live") or name != PROBED]
        if part.startswith("wrong"):
            who = [name for name in contestants if name in (PROBED, AGAINST_WRONG)]
        jobs += [Job(part, problem, name, seed) for problem in own for name in who for seed in range(seeds)]
    return jobs


def run(job: Job, probes: Path) -> dict[str, Any]:
    """One study, as a row of the result."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    arena = design_arena(job.problem, int(job.part[1:])) if job.part in ("+1", "+3") else None
    if job.part == "live":
        arena = live_arena(job.problem, job.seed)
    arena = arena or sweep_arena(job.problem, job.seed)
    workers = int(job.part.split()[1]) if job.part.startswith("workers") else 1
    probed, price = None, 0.0
    if job.contestant == PROBED:
        probed, price = probe_of(job, arena, probes)
    if job.contestant in RIVALS:
        outcome = search(arena, rival_study(job.contestant, job.seed), Plain(arena), workers=workers)
    else:
        outcome = search(arena, our_study(arena, job.seed, probed), Ours(arena), workers=workers)
    spent = [None if value is None else value + price for value in outcome.spent]
    return {**job._asdict(), "spent": spent, "total": outcome.total + price, "trials": outcome.trials, "probe": price}


def probe_of(job: Job, arena: Arena, probes: Path) -> tuple[Forecast, float]:
    """The forecast of a probe, made wrong where the part says so, and what the probe cost; probes are kept."""
    from probes import kept_probe, probe_problem

    seed = PROBE_SEEDS[job.seed % len(PROBE_SEEDS)]
    if job.part.startswith("wrong"):
        report = probe_problem(job.problem, SHARE_OF_WRONG, seed, probes).report
        if report is None:
            raise RuntimeError(f"no probe of {job.problem} with seed {seed}")
        forecast = wrong(Forecast.fit(report), *WRONG[job.part.removeprefix("wrong: ")])
    else:
        budget = max(LEAST_PROBE, round(PROBE_SHARE * arena.best))
        path = probes / f"{job.problem}-search-{seed}.json"
        report = kept_probe(path, job.problem, budget, seed, per_step=PRICE.per_step)
        forecast = Forecast.fit(report)
    return forecast, price_of(report) / arena.best


def price_of(report: ProbeReport) -> float:
    """What a probe cost, as the trials are priced."""
    return PRICE.per_step * report.steps_spent + PRICE.per_example * report.examples_spent


def wrong(forecast: Forecast, batch: float, rate: float) -> Forecast:
    """A forecast whose critical batch size and learning rate are wrong by factors."""
    moves = {"log_b": math.log(batch), "log_lr": math.log(rate)}
    law = forecast.constant_law

    def moved(row: Sequence[float]) -> tuple[float, ...]:
        return tuple(value + moves.get(SHAPE[i], 0.0) if i < len(SHAPE) else value for i, value in enumerate(row))

    law = replace(law, best=moved(law.best), draws=tuple(map(moved, law.draws)), unstable=())
    return replace(forecast, constant_law=law)


class Kept:
    """Rows that are done, one to a line of a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: dict[Job, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # an interrupted write leaves part of a line
                    row = json.loads(line)
                    self.rows[Job(*(row[field] for field in Job._fields))] = row

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(row) + "\n")
        self.rows[Job(*(row[field] for field in Job._fields))] = row


def spent(rows: Iterable[dict[str, Any]], mark: int = 0) -> np.ndarray:
    """Spending of studies in the order of their seeds; infinite where nothing was found."""
    ordered = sorted(rows, key=lambda row: row["seed"])
    return np.array([math.inf if row["spent"][mark] is None else row["spent"][mark] for row in ordered])


def best_rival(cell: dict[str, list[dict[str, Any]]]) -> str:
    """The rival with the smallest median of a problem."""
    rivals = [name for name in cell if name in RIVALS]
    return min(rivals, key=lambda name: (np.median(spent(cell[name])), np.mean(np.minimum(spent(cell[name]), 1e3))))


def loses(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether ours spends more, beyond the paired bootstrap's 95 % interval of the mean log ratio."""
    count = min(len(ours), len(theirs))
    logs = np.log(np.minimum(ours[:count], 1e3) / np.minimum(theirs[:count], 1e3))
    rng = np.random.default_rng(0)
    means = np.mean(logs[rng.integers(count, size=(2_000, count))], axis=1)
    return bool(np.quantile(means, 0.025) > 0.0)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By part: for every problem the median and 90th percentile of everyone, the best rival, and ratios."""
    cells: dict[str, dict[str, dict[str, list[dict[str, Any]]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for row in rows:
        cells[row["part"]][row["problem"]][row["contestant"]].append(row)
    found: dict[str, Any] = {}
    for part, problems in cells.items():
        table = {problem: _problem(cell) for problem, cell in problems.items()}
        found[part] = {"problems": table, "overall": _overall(table)}
    wrongs = wrong_forecasts(rows)
    return {**found, "wrong forecasts over TPE + Median": wrongs} if wrongs else found


def wrong_forecasts(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By case and problem: what we spend over what TPE + Median spends on the same seeds, a geometric mean.

    A search that found nothing counts with all that it spent.
    """
    plain = {
        (row["problem"], row["seed"]): _paid(row)
        for row in rows
        if row["part"] == "sweep" and row["contestant"] == AGAINST_WRONG
    }
    logs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        at = row["problem"], row["seed"]
        if row["part"].startswith("wrong") and row["contestant"] == PROBED and at in plain:
            logs[row["part"]][row["problem"]].append(math.log(_paid(row) / plain[at]))
    return {
        case: {problem: math.exp(float(np.mean(values))) for problem, values in problems.items()}
        for case, problems in logs.items()
    }


def _paid(row: dict[str, Any]) -> float:
    return float(row["total"] if row["spent"][0] is None else row["spent"][0])


def _problem(cell: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    told: dict[str, Any] = {
        name: {
            "median": _finite(np.median(spent(group))),
            "90th": _finite(np.quantile(spent(group), 0.9, method="higher")),
            "median to 10 %": _finite(np.median(spent(group, 1))),
            "seeds": len(group),
        }
        for name, group in cell.items()
    }
    rivals = [name for name in cell if name in RIVALS]
    if not rivals:
        return {"contestants": told}
    best = best_rival(cell)
    compared = {}
    for name in (OURS, PROBED):
        if name in cell:
            mine, theirs = np.median(spent(cell[name])), np.median(spent(cell[best]))
            seeds = {row["seed"] for row in cell[name]} & {row["seed"] for row in cell[best]}
            pair = [spent([row for row in cell[who] if row["seed"] in seeds]) for who in (name, best)]
            compared[name] = {
                "ratio": _finite(theirs / mine) if math.isfinite(mine) else 0.0,
                "loses": loses(*pair),
            }
    return {"contestants": told, "best rival": best, "compared": compared}


def _overall(table: dict[str, Any]) -> dict[str, Any]:
    medians: dict[str, list[float]] = defaultdict(list)
    ratios: dict[str, list[float]] = defaultdict(list)
    for told in table.values():
        for name, figures in told["contestants"].items():
            medians[name].append(math.inf if figures["median"] is None else figures["median"])
        for name, figures in told.get("compared", {}).items():
            ratios[name].append(math.inf if figures["ratio"] is None else figures["ratio"])
    return {
        "median over problems": {name: _finite(np.median(values)) for name, values in medians.items()},
        "median ratio to the best rival": {name: _finite(np.median(values)) for name, values in ratios.items()},
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def print_summary(found: dict[str, Any]) -> None:
    """Print what was found."""
    for part, told in found.items():
        if "problems" not in told:
            _print_wrong(part, told)
            continue
        print(f"\n{part}: median (90th percentile) of what was spent, in units of the best configuration's cost")
        for problem, row in told["problems"].items():
            best = row.get("best rival")
            print(f"  {problem}" + (f"   best rival: {best}" if best else ""))
            for name, figures in row["contestants"].items():
                mark = ""
                if name in row.get("compared", {}):
                    compared = row["compared"][name]
                    mark = f"   {_shown(compared['ratio'])} times less than the best rival"
                    mark += ", LOSES" if compared["loses"] else ""
                print(
                    f"    {name:28}{_shown(figures['median']):>7} ({_shown(figures['90th'])}); "
                    f"within 10 %: {_shown(figures['median to 10 %'])}{mark}"
                )
        for what, values in told["overall"].items():
            print(f"  {what}: " + ", ".join(f"{name} {_shown(value)}" for name, value in values.items()))


def _print_wrong(title: str, cases: dict[str, dict[str, float]]) -> None:
    print(f"\n{title}, by case and problem")
    for case, problems in cases.items():
        print(f"  {case:18} " + ", ".join(f"{problem} {value:.2f}" for problem, value in problems.items()))


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    swept = [name for name in PROBLEMS if (FOLDER / f"{name}.npz").exists()]
    every = [
        "sweep",
        *(f"+{count}" for count in EXTRAS),
        "workers 4",
        "workers 16",
        "live",
        *(f"wrong: {x}" for x in WRONG),
    ]
    parser.add_argument("--parts", nargs="+", choices=every, default=every)
    parser.add_argument("--problems", nargs="+", choices=swept, default=swept)
    parser.add_argument("--contestants", nargs="+", choices=[OURS, PROBED, *RIVALS], default=[OURS, PROBED, *RIVALS])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2, help="processes, each with one thread")
    parser.add_argument("--kept", type=Path, default=HERE / "out" / "search.jsonl", help="where studies are kept")
    parser.add_argument("--probes", type=Path, default=HERE / "out" / "probes", help="where probes are kept")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    kept = Kept(args.kept)
    left = [
        job
        for job in jobs_of(args.parts, args.problems, args.contestants, args.seeds)
        if job not in kept.rows
    ]  # fmt: skip
    print(f"{len(kept.rows)} studies done, {len(left)} to go, at most {MOST_TRIALS} trials each", flush=True)
    work = Parallel(n_jobs=args.jobs, return_as="generator_unordered")(delayed(run)(job, args.probes) for job in left)
    for row in work:
        kept.add(row)
    found = summary(list(kept.rows.values()))
    save(args.output, {"machine": machine(), "optuna": optuna.__version__, "summary": found})
    print_summary(found)


if __name__ == "__main__":
    main()

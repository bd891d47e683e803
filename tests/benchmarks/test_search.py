"""The replay that searches are compared on: what a trial costs, when a search counts as done, who loses."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from contest import clock
from contest.clock import search
from contest.contestants import RIVALS, Ours, Plain, our_study, rival_study
from contest.replay import BATCH_SIZE, LEARNING_RATE, MOST_COSTS, Arena, Trace, milestones, sweep_arena, trace_of
from optuna.trial import TrialState
from search import PROBED, best_rival, loses, spent, summary, wrong_forecasts
from truth.curves import Run
from truth.design import PRICE

optuna.logging.set_verbosity(optuna.logging.ERROR)


def run(size: int = 64, *, outcome: str = "reached", last: float = 0.05) -> Run:
    examples = (0, *(256 * 2**k for k in range(9)))
    losses = tuple(np.geomspace(2.0, last, len(examples)))
    return Run(size, 0.1, 0, 0, outcome, examples, losses, losses)


def test_a_trial_costs_what_its_run_took_to_the_loss() -> None:
    cost = run().examples_to(0.1) / 64 * PRICE(64)
    trace = trace_of(run(), loss=0.1, best=cost, ratio=1.0)
    assert trace.reached
    assert trace.end == pytest.approx(cost)
    assert all(report.cost in milestones(cost) for report in trace.reports)
    assert all(report.loss > 0.1 for report in trace.reports)
    # Nothing is reported before the run's first evaluation.
    assert trace.reports[0].cost >= 256 / 64 * PRICE(64)


def test_a_trial_that_misses_the_loss_ends_where_its_run_did_or_at_the_cap() -> None:
    end = run().examples[-1] / 64 * PRICE(64)
    trace = trace_of(run(), loss=0.01, best=end, ratio=math.inf)
    assert not trace.reached
    assert trace.end == pytest.approx(end)
    capped = trace_of(run(), loss=0.01, best=end / 100.0, ratio=math.inf)
    assert capped.end == pytest.approx(MOST_COSTS * end / 100.0)


def test_a_trial_that_diverges_says_so() -> None:
    trace = trace_of(run(outcome="diverged"), loss=0.01, best=1e6, ratio=math.inf)
    assert math.isnan(trace.reports[-1].loss)
    begun = Run(64, 9.0, 0, 0, "diverged", (0,), (2.0,), (2.0,))
    assert trace_of(begun, loss=0.01, best=1e6, ratio=math.inf).end == 4 * PRICE(64)


def arena() -> Arena:
    """Costs fall to the best at 2^6 and 0.1."""
    best = 10_000.0

    def play(params: Mapping[str, Any]) -> Trace:
        away = 0.2 * (params[BATCH_SIZE] - 6) ** 2 + math.log(params[LEARNING_RATE] / 0.1) ** 2
        ratio = math.exp(min(away, 2.0))
        size = 2 ** params[BATCH_SIZE]
        examples = [round(ratio * best / PRICE(size) * size * 1.3**-k) for k in range(12, -4, -1)]
        losses = tuple(2.0 * (0.1 / 2.0) ** ((n / examples[-4]) ** 0.4) for n in examples)
        steady = Run(size, params[LEARNING_RATE], 0, 0, "reached", tuple(examples), losses, losses)
        return trace_of(steady, loss=0.1, best=best, ratio=ratio)

    space = {
        BATCH_SIZE: optuna.distributions.IntDistribution(3, 10),
        LEARNING_RATE: optuna.distributions.FloatDistribution(1e-3, 3.0, log=True),
    }
    return Arena(name="bowl", space=space, loss=0.1, best=best, play=play)


def test_a_search_counts_all_training_until_the_mark() -> None:
    outcome = search(arena(), rival_study("Random", 0), Plain(arena()))
    study = rival_study("Random", 0)
    again = search(arena(), study, Plain(arena()))
    assert again == outcome
    assert outcome.spent[0] is not None
    costs = [arena().play(trial.params) for trial in study.trials]
    first = next(i for i, trace in enumerate(costs) if trace.ratio <= 1.2)
    assert outcome.spent[0] == pytest.approx(sum(trace.end for trace in costs[: first + 1]) / 10_000.0)


def test_workers_pay_for_what_runs_beside() -> None:
    """The slow twin of the clock, for a sampler that looks at no other trial and with nothing pruned."""
    study = rival_study("Random", 0)
    together = search(arena(), study, Plain(arena()), workers=4).spent[0]
    free, ran, found = [0.0] * 4, [], math.inf
    for trial in study.trials:
        began = heapq.heappop(free)
        trace = arena().play(trial.params)
        heapq.heappush(free, began + trace.end)
        ran.append((began, began + trace.end))
        if trace.ratio <= 1.2:
            found = min(found, began + trace.end)
    paid = sum(min(end, found) - began for began, end in ran if began < found) / 10_000.0
    # The clock charges a stretch between two reports when it begins: three others are within one at the find.
    stretch = max(end - began for began, end in ran) * (1.0 - 1.0 / 1.3) / 10_000.0
    assert together is not None
    assert paid <= together <= paid + 3 * stretch


def test_ours_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "MORE_TRIALS", 0)
    outcome = search(arena(), our_study(arena(), 0), Ours(arena()))
    assert outcome.spent[0] is not None
    assert outcome.spent[0] < 10.0


@pytest.mark.parametrize("name", [name for name in RIVALS if "GP" not in name and name != "CMA-ES"])
def test_every_rival_takes_part(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "MOST_TRIALS", 12)
    study = rival_study(name, 1)
    search(arena(), study, Plain(arena()))
    states = {trial.state for trial in study.trials}
    assert states - {TrialState.PRUNED} == {TrialState.COMPLETE}
    # What the name says of pruning is so; Hyperband and halving have too few trials here to end one for certain.
    assert name != "TPE + Median" or TrialState.PRUNED in states
    assert ("+" in name) == (not isinstance(study.pruner, optuna.pruners.NopPruner))


def test_the_best_configuration_is_in_the_ranges_but_not_in_their_middle() -> None:
    middles = []
    for seed in range(12):
        found = sweep_arena("digits_mlp", seed)
        sizes, rates = found.space[BATCH_SIZE], found.space[LEARNING_RATE]
        assert sizes.low <= math.log2(found.place[0]) <= sizes.high  # type: ignore[attr-defined]
        low, high = math.log(rates.low), math.log(rates.high)  # type: ignore[attr-defined]
        middles.append((math.log(found.place[1]) - low) / (high - low))
        assert 0.0 < middles[-1] < 1.0
        trace = found.play({BATCH_SIZE: round(math.log2(found.place[0])), LEARNING_RATE: found.place[1]})
        assert trace.ratio == 1.0
    assert max(middles) - min(middles) > 0.2


def rows(contestant: str, values: list[float | None]) -> list[dict[str, Any]]:
    return [
        {"part": "sweep", "problem": "p", "contestant": contestant, "seed": seed, "spent": [value, None], "total": 9.0}
        for seed, value in enumerate(values)
    ]


def test_the_best_rival_is_chosen_by_the_median_and_a_search_without_a_find_counts_as_endless() -> None:
    cell = {"TPE": rows("TPE", [5.0, 6.0, None]), "Random": rows("Random", [None, None, 1.0])}
    assert best_rival(cell) == "TPE"
    assert list(spent(cell["TPE"])) == [5.0, 6.0, math.inf]
    told = summary(rows("batchopt", [2.0, 2.0, 3.0]) + cell["TPE"] + cell["Random"])["sweep"]
    assert told["problems"]["p"]["compared"]["batchopt"] == {"ratio": 3.0, "loses": False}
    assert told["overall"]["median over problems"]["Random"] is None


def test_losing_is_beyond_chance() -> None:
    rng = np.random.default_rng(0)
    theirs = np.exp(rng.normal(size=20))
    assert loses(2.0 * theirs, theirs)
    assert not loses(theirs * np.exp(rng.normal(size=20)), theirs)


def test_wrong_forecasts_are_compared_on_their_own_seeds() -> None:
    def row(part: str, contestant: str, seed: int, found: float | None, total: float = 50.0) -> dict[str, Any]:
        return {
            "part": part, "problem": "p", "contestant": contestant, "seed": seed, "spent": [found, None], "total": total
        }  # fmt: skip

    plain = [row("sweep", "TPE + Median", seed, 10.0) for seed in range(3)]
    wrong = [row("wrong: rate x20", PROBED, 0, 20.0), row("wrong: rate x20", PROBED, 1, None)]
    assert wrong_forecasts([*plain, *wrong]) == {"wrong: rate x20": {"p": pytest.approx(math.sqrt(2.0 * 5.0))}}

"""The brute-force runner: the closed form against simulation, what a sweep still lacks, and what it says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from truth import quadratic
from truth.curves import FOLDER, Run, pack, unpack
from truth.decayed import DecayedSweep, decayed_sweep_of
from truth.decaying import SHAPED
from truth.decaying import missing as missing_decaying
from truth.problems import PROBLEMS, Problem
from truth.sweep import missing, rank
from truth.tradeoff import Sweep

from batchopt import StepCost
from batchopt.errors import EvidenceError
from batchopt.tradeoff import TradeoffLaw

SMALL = replace(
    PROBLEMS["quadratic"],
    batch_sizes=(4, 8, 16, 32, 64, 128, 256, 512),
    learning_rate=0.1,
    losses=(1.0, 0.5),
    seeds=(0, 1),
)
LAW = TradeoffLaw(steps_min=40.0, examples_min=2_000.0)


def made_run(batch_size: int, learning_rate: float, seed: int, *, spread: float = 0.0) -> Run:
    """Steps to loss 0.5 follow the law at its best rate 0.2 B / (B + 50), and are more at others."""
    best = 0.2 * batch_size / (batch_size + 50.0)
    detour = 1.0 + math.log2(learning_rate / best) ** 2
    noise = spread * np.random.default_rng([batch_size, seed, round(1e6 * learning_rate)]).standard_normal()
    last = float(LAW.steps(batch_size)) * detour * math.exp(noise) * batch_size
    examples = np.unique(np.round(last * np.linspace(0.0, 1.2, 40))).astype(int)
    losses = 2.0 * 0.25 ** (examples / last)
    return Run(batch_size, learning_rate, seed, 0, "reached", tuple(map(int, examples)), tuple(losses), tuple(losses))


def swept(problem: Problem, *, spread: float = 0.0) -> list[Run]:
    runs: list[Run] = []
    for _ in range(50):
        wanted = missing(problem, runs)
        if not wanted:
            return runs
        runs += [made_run(size, rate, seed, spread=spread) for size, rate, seed in wanted]
    raise AssertionError("the sweep does not end")


def test_closed_form_agrees_with_training() -> None:
    """200 runs of the recurrence that the formula sums up."""
    rng = np.random.default_rng(0)
    batch_size, rate, h = 16, 0.4, quadratic.EIGENVALUES
    theta = np.ones((200, quadratic.DIMENSIONS))
    seen = [0.5 * np.mean(theta**2 @ h)]
    for _ in range(60):
        noise = rng.standard_normal(theta.shape) * np.sqrt(quadratic.NOISE * h / batch_size)
        theta -= rate * (h * theta + noise)
        seen.append(0.5 * np.mean(theta**2 @ h))
    told = quadratic.expected_losses(batch_size, rate, np.arange(61))
    assert told == pytest.approx(np.array(seen), rel=0.05)
    assert quadratic.expected_losses(batch_size, 0.0 * rate, np.arange(3)) == pytest.approx(np.full(3, told[0]))


def test_any_sequence_of_rates_holds_the_constant_one() -> None:
    told = quadratic.expected_losses(16, 0.4, np.arange(61))
    assert quadratic.losses_under(16, np.full(60, 0.4)) == pytest.approx(told, rel=1e-12)


def test_a_sweep_ends_with_the_best_rate_inside_its_grid() -> None:
    runs = swept(SMALL)
    for size in SMALL.batch_sizes:
        groups = {
            run.learning_rate: [r for r in runs if r.batch_size == size and r.learning_rate == run.learning_rate]
            for run in runs
            if run.batch_size == size
        }
        rates = sorted(groups)
        best = min(rates, key=lambda rate: rank(groups[rate], 0.5))
        assert rates[0] < best < rates[-1]
        assert {run.seed for run in runs if run.batch_size == size} == {0, 1}
        assert best == pytest.approx(0.2 * size / (size + 50.0), rel=0.45)


def test_a_group_that_misses_the_loss_ranks_last_and_a_diverged_one_after_it() -> None:
    reached = made_run(8, 0.02, 0)
    missed = replace(reached, outcome="stopped", losses=tuple(max(loss, 0.6) for loss in reached.losses))
    diverged = replace(reached, outcome="diverged", losses=tuple(5.0 for _ in reached.losses))
    groups = [[diverged], [missed], [reached]]
    assert sorted(groups, key=lambda runs: rank(runs, 0.5)) == [[reached], [missed], [diverged]]


def test_the_trade_off_is_found_again_with_an_interval_that_holds_it() -> None:
    sweep = Sweep("quadratic", swept(SMALL, spread=0.1))
    sweep.problem = SMALL
    found = sweep.tradeoff(0.5)
    low, high = found.critical_batch_size
    # The grid's best rate is up to half an octave off, which costs at most a quarter of the steps, at all sizes alike.
    assert found.fit.law.critical_batch_size == pytest.approx(LAW.critical_batch_size, rel=0.25)
    assert low < LAW.critical_batch_size < high
    assert 1.05 < high / low < 2.0
    assert found.is_certain
    exact = Sweep("quadratic", swept(SMALL))
    exact.problem = SMALL
    sharper = exact.tradeoff(0.5).critical_batch_size
    assert sharper[1] / sharper[0] < high / low


def test_steps_between_grid_points_and_beyond() -> None:
    sweep = Sweep("quadratic", swept(SMALL))
    sweep.problem = SMALL
    rates = sorted(rate for size, rate in sweep.configs if size == 64)
    on_grid = sweep.steps(64, rates[1], 0.5)
    assert on_grid == pytest.approx(float(np.mean([r.examples_to(0.5) for r in sweep.configs[64, rates[1]]])) / 64)
    between = sweep.steps(64, math.sqrt(rates[1] * rates[2]), 0.5)
    assert min(on_grid, sweep.steps(64, rates[2], 0.5)) < between < max(on_grid, sweep.steps(64, rates[2], 0.5))
    assert math.isinf(sweep.steps(64, rates[-1] * 2.1, 0.5))
    assert math.isinf(sweep.steps(1024, rates[1], 0.5))


def test_curves_survive_packing(tmp_path: Path) -> None:
    runs = swept(SMALL)[:5]
    pack(runs, tmp_path / "curves.npz")
    again = unpack(tmp_path / "curves.npz")
    assert [run.key for run in again] == sorted(run.key for run in runs)
    for run in runs:
        twin = next(other for other in again if other.key == run.key)
        assert twin.examples == run.examples
        assert twin.losses == pytest.approx(run.losses, rel=1e-6)
        assert twin.outcome == run.outcome


def ladder(batch_size: int, learning_rate: float, seed: int, *, times: float, last: int = 12) -> list[Run]:
    """A stable run and its cooldowns, which end at loss 0.5 after `times` the law's examples."""
    needed = float(LAW.examples(batch_size)) * times
    stable = Run(batch_size, learning_rate, seed, 0, "stopped", (1,), (2.0,), (2.0,), "wsd")
    ends = [2 ** (9 + k) for k in range(last)]
    losses = [0.5 * (end / needed) ** -0.5 for end in ends]
    return [stable] + [
        Run(batch_size, learning_rate, seed, end, "reached", (end,), (loss,), (2.0 * loss,), "wsd")
        for end, loss in zip(ends, losses, strict=True)
    ]


def decayed(*, sizes: tuple[int, ...] = (4, 16, 64, 256)) -> DecayedSweep:
    """The best rate is 0.1 everywhere; 0.05 takes twice the examples, and 0.2 diverges."""
    runs = [
        run
        for size in sizes
        for seed in (0, 1)
        for rate, times in ((0.05, 2.0), (0.1, 1.0))
        for run in ladder(size, rate, seed, times=times * (1.0 + 0.02 * seed))
    ]
    broken = [Run(size, 0.2, seed, 0, "diverged", (1,), (2.0,), (2.0,), "wsd") for size in sizes for seed in (0, 1)]
    return DecayedSweep("quadratic", runs + broken)


def test_decayed_runs_tell_the_trade_off() -> None:
    found = decayed().tradeoff(0.5)
    assert found is not None
    assert found.fit.law.critical_batch_size == pytest.approx(LAW.critical_batch_size, rel=0.01)
    assert found.learning_rates == (0.1,) * 4
    low, high = found.critical_batch_size
    assert low <= LAW.critical_batch_size <= high
    assert decayed().is_resolved(found)


def test_a_setting_of_fewer_seeds_is_less_certain() -> None:
    whole = decayed()
    half = DecayedSweep("quadratic", [run for run in whole.runs if run.seed == 0 or run.batch_size > 16])
    found, less = whole.tradeoff(0.5), half.tradeoff(0.5)
    assert found is not None
    assert less is not None
    assert found.fit.law.critical_batch_size == pytest.approx(less.fit.law.critical_batch_size, rel=0.1)
    errors = half._errors(half.log_examples(0.5), 0.5)
    assert errors[16, 0.1] == pytest.approx(math.sqrt(2.0) * errors[64, 0.1])


def test_a_loss_that_the_shortest_runs_reach_is_not_resolved() -> None:
    sweep = decayed()
    assert sweep.floored(1.5) == (4, 16, 64)
    assert sweep.tradeoff(1.5) is None
    assert sweep.tradeoff(2.5) is None


def test_decayed_settings_between_rates_and_beyond() -> None:
    sweep, fewest = decayed(), float(LAW.examples(16)) * math.sqrt(1.02)
    assert sweep.examples(16, 0.1, 0.5) == pytest.approx(fewest, rel=1e-3)
    assert sweep.examples(16, 0.05, 0.5) == pytest.approx(2.0 * fewest, rel=1e-3)
    assert sweep.examples(16, math.sqrt(0.05 * 0.1), 0.5) == pytest.approx(math.sqrt(2.0) * fewest, rel=1e-3)
    # The speed falls to zero at the rate that diverges.
    assert sweep.examples(16, math.sqrt(0.1 * 0.2), 0.5) == pytest.approx(2.0 * fewest, rel=1e-3)
    assert math.isinf(sweep.examples(16, 0.2, 0.5))
    assert math.isinf(sweep.examples(16, 0.04, 0.5))
    assert math.isinf(sweep.examples(8, 0.1, 0.5))


def test_a_closed_form_has_no_scatter_over_seeds() -> None:
    runs = [run for run in decayed().runs if run.seed == 0]
    exact = DecayedSweep("quadratic", runs)
    assert set(exact._errors(exact.log_examples(0.5), 0.5).values()) == {0.0}
    scattered = DecayedSweep("quadratic", runs + ladder(16, 0.1, 1, times=1.2))
    assert max(scattered._errors(scattered.log_examples(0.5), 0.5).values()) > 0.0


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_sweep_is_complete(name: str) -> None:
    problem, constant, sweep = PROBLEMS[name], unpack(FOLDER / f"{name}.npz"), decayed_sweep_of(name)
    first = list(missing_decaying(name, [], constant))
    assert {job.batch_size for job in first} == set(sweep.batch_sizes) <= set(problem.batch_sizes)
    assert {job.seed for job in first} == {0}
    kept = unpack(FOLDER / f"{name}-decaying.npz")
    assert list(missing_decaying(name, kept, constant)) == []
    stable = {run.seed for run in kept if run.shape == "wsd"}
    assert stable == set(problem.seeds[:2])
    assert {run.seed for run in kept if run.shape == "cosine"} == (stable if name in SHAPED else set())


def test_a_rate_that_was_not_followed_to_the_loss_is_as_far_behind_as_it_must_be() -> None:
    runs = ladder(16, 0.1, 0, times=1.0) + ladder(16, 0.05, 0, times=9.0, last=5)
    sweep = DecayedSweep("quadratic", runs)
    assert math.exp(sweep.log_examples(0.5)[16, 0.05]) == pytest.approx(2.0 * 2**13)


def test_the_cheapest_decayed_setting_and_how_far_others_end_above() -> None:
    sweep = decayed()
    price = StepCost(per_step=0.0, per_example=1.0)
    best = sweep.cheapest(0.5, price)
    assert (best.batch_size, best.learning_rate) == (4, 0.1)
    assert best.cost == pytest.approx(best.examples)
    assert sweep.cheapest(0.5, price, 64).batch_size == 64
    with pytest.raises(EvidenceError, match="no run of batch size 8"):
        sweep.cheapest(0.5, price, 8)
    assert sweep.excess(64, 0.1, 5_000) == pytest.approx(0.0)
    assert sweep.excess(64, 0.05, 5_000) == pytest.approx(0.5 * math.log(2.0))
    assert math.isinf(sweep.excess(64, 0.4, 5_000))
    assert sweep.held_out(16, 0.1, 4_096) == pytest.approx(2.0 * math.exp(sweep.ladders[16, 0.1][4_096]))

"""Cooldowns: twin of a run trained straight through, what they leave alone, how long they are, what they cost."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import joblib
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from probing.problems import classification, make_task, mlp

from batchopt.evidence import Branch, LossCurve, Spending
from batchopt.learning_rate_schedule import LearningRateSchedule
from batchopt.probing.branches import COOLDOWN_WINDOWS, Leg, SharedTask, run_leg, run_legs, stops
from batchopt.probing.budget import LEAST_COOLDOWN_STEPS, LONG_COOLDOWNS, SHARES, SHORT_COOLDOWN
from batchopt.probing.cooldowns import LONG, SHORT, cooldown, cooldowns_of_long_runs, cooldowns_of_short_runs
from batchopt.probing.journal import Journal, Part
from batchopt.probing.run import TrainingRun
from batchopt.probing.session import Session
from batchopt.probing.task import TrainingTask

RATE, SIZE, SEED, STEPS, FALL = 0.05, 8, 3, 40, 10
EVALUATION = 200 / 3.0
"""Examples that one evaluation costs here."""


def task_of(**changes: Any) -> TrainingTask:
    """Adam and dropout, so that a snapshot has more than weights to bring back."""
    settings: dict[str, Any] = {
        "model": lambda: mlp(dropout=0.2),
        "optimizer": lambda parameters, lr: torch.optim.Adam(parameters, lr=lr),
    }
    return make_task(**(settings | changes))


def stable_leg(**changes: Any) -> Leg:
    leg = Leg("stable", "short runs, small batch", SIZE, RATE, budget=float(SIZE * STEPS), step_price=SIZE, seed=SEED)
    return replace(leg, **changes)


def cooldown_leg(**changes: Any) -> Leg:
    return stable_leg(name="cool", part=SHORT, continues="stable", cooldown_steps=FALL, ends_evaluated=True, **changes)


def run_both(task: TrainingTask, folder: Path, **changes: Any) -> tuple[Part, Part, Journal]:
    journal = Journal(folder)
    stable = journal.keep("stable", run_leg(task, stable_leg(), journal))
    return stable, journal.keep("cool", run_leg(task, cooldown_leg(**changes), journal)), journal


@pytest.mark.parametrize("warmup", [0, 100])
def test_twin_of_a_run_trained_straight_through_by_the_schedule(warmup: int, tmp_path: Path) -> None:
    task = task_of(warmup_examples=warmup)
    stable, cool, _ = run_both(task, tmp_path)
    assert stable.branch is not None
    assert cool.branch is not None
    schedule = cool.branch.learning_rate_schedule
    begin = stable.examples_seen
    end = begin + FALL * SIZE
    points = ((0, 0.0), (warmup, 1.0)) if warmup else ((0, 1.0),)
    examples, multipliers = zip(*points, (begin, 1.0), (end, 0.0), strict=True)
    assert schedule == LearningRateSchedule(examples, multipliers)
    assert stable.branch.learning_rate_schedule == (LearningRateSchedule((0, warmup), (0.0, 1.0)) if warmup else None)
    twin, losses = TrainingRun(task, learning_rate=RATE, seed=SEED), []
    while twin.examples_seen < end:
        n = twin.examples_seen
        # The ramp is the run's own.
        losses.append(twin.step(SIZE, multiplier=1.0 if n < begin else (end - n - SIZE / 2) / (end - begin)))
    assert cool.branch.curve == LossCurve((end,), (twin.evaluate(),))
    windows = cool.branch.training
    assert windows is not None
    assert sum(windows.losses[:2]) == losses[-FALL] + losses[-FALL + 1]  # 8 windows of 10 steps: the first have one


def test_every_step_takes_the_rate_in_the_middle_of_its_examples(tmp_path: Path) -> None:
    rates: list[tuple[int, float]] = []
    original = TrainingRun.step

    def seen(run: TrainingRun, *args: Any, **keywords: Any) -> float:
        begin = run.examples_seen
        loss = original(run, *args, **keywords)
        rates.append((begin, run.optimizer.param_groups[0]["lr"]))
        return loss

    with patch.object(TrainingRun, "step", seen):
        _, cool, _ = run_both(task_of(), tmp_path)
    assert cool.branch is not None
    schedule = cool.branch.learning_rate_schedule
    assert schedule is not None
    assert len(rates) > FALL
    for begin, rate in rates:
        assert rate == pytest.approx(RATE * schedule.mean(begin, begin + SIZE), rel=1e-12)
    assert rates[-1][1] == pytest.approx(RATE / (2 * FALL))


def test_the_stable_run_stays_as_it_is_and_a_cooldown_leaves_no_snapshot(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    kept = journal.keep("stable", run_leg(task_of(), stable_leg(), journal))
    snapshot = journal.snapshot("stable").read_bytes()
    part = journal.keep("cool", run_leg(task_of(), cooldown_leg(), journal))
    assert journal.snapshot("stable").read_bytes() == snapshot
    assert journal.finished("stable") == kept
    assert not journal.snapshot("cool").exists()
    # It comes out the same from the snapshot as it is now.
    again = run_leg(task_of(), cooldown_leg(), journal)
    assert again.branch == part.branch


def test_a_cooldown_holds_only_what_comes_after(tmp_path: Path) -> None:
    stable, cool, _ = run_both(task_of(), tmp_path)
    assert cool.branch is not None
    assert cool.branch.training is not None
    begin, end = stable.examples_seen, stable.examples_seen + FALL * SIZE
    assert (cool.branch.batch_size, cool.branch.learning_rate) == (SIZE, RATE)
    assert cool.branch.falls == (begin, end)
    assert cool.examples_seen == end
    assert all(n >= begin for n in (*cool.branch.training.examples, *cool.branch.curve.examples))
    assert cool.branch.curve.examples == (end,)
    assert len(cool.branch.training.examples) == COOLDOWN_WINDOWS
    assert cool.spending.steps == FALL
    assert cool.spending.examples == pytest.approx(FALL * SIZE + EVALUATION)
    assert cool.spending.part == SHORT


def test_the_last_windows_are_short_however_long_the_run_was(tmp_path: Path) -> None:
    """Windows that widen from the run's first step on would have one over the whole cooldown."""
    journal = Journal(tmp_path)
    journal.keep("stable", run_leg(task_of(), stable_leg(budget=2_400.0), journal))
    part = run_leg(task_of(), replace(cooldown_leg(), cooldown_steps=40), journal)
    assert part.branch is not None
    assert part.branch.training is not None
    assert [late - early for early, late in pairwise(part.branch.training.examples)] == [5.0 * SIZE] * 7


def test_a_cooldown_that_runs_out_of_time_says_what_was_meant(tmp_path: Path) -> None:
    now = 0.0

    def slow(model: Any, batch: Any) -> torch.Tensor:
        nonlocal now
        now += 1.0
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    with patch.object(time, "time", lambda: now):
        task, journal = task_of(loss=slow), Journal(tmp_path)
        stable = journal.keep("stable", run_leg(task, stable_leg(), journal))
        part = run_leg(task, cooldown_leg(deadline=now + 3.5), journal)
        begun_late = run_leg(task, cooldown_leg(deadline=now - 1.0), journal)
    assert part.branch is not None
    assert part.branch.outcome == "stopped"
    assert part.spending.steps == 4
    assert part.branch.falls == (stable.examples_seen, stable.examples_seen + FALL * SIZE)
    assert part.branch.examples < stable.examples_seen + FALL * SIZE
    assert begun_late.branch is not None
    assert (begun_late.branch.examples, begun_late.spending.examples) == (0.0, 0.0)


@given(st.integers(4, 200), st.integers(0, 5_000), st.booleans(), st.floats(0.1, 5_000.0))
def test_only_the_end_of_a_cooldown_is_evaluated(steps: int, done: int, ends_evaluated: bool, cost: float) -> None:
    leg = replace(cooldown_leg(), cooldown_steps=steps, ends_evaluated=ends_evaluated, budget=1.0)
    found = stops(leg, done=done, evaluation_cost=cost)
    assert found[-1] == (done + steps, ends_evaluated)
    assert not any(evaluated for _, evaluated in found[:-1])
    assert all(step > done for step, _ in found)


def session_of(folder: Path, task: TrainingTask | None = None, *, budget: int = 24_000) -> Session:
    task = task or task_of()
    return Session(task, SharedTask(task, folder), Journal(folder), SEED, lambda part, done: None, None, budget)


def finished(session: Session, leg: Leg, *, examples: int, spent: float = 0.0) -> Leg:
    """The leg, as if it had been trained."""
    branch = Branch(leg.batch_size, leg.learning_rate, LossCurve((examples,), (1.0,)))
    session.parts[leg.name] = Part(Spending(leg.part, spent, 0, 0.0), branch=branch, examples_seen=examples)
    return leg


@given(
    st.integers(1, 100_000),
    st.integers(1, 512),
    st.floats(0.05, 0.5),
    st.floats(0.0, 30_000.0),
    st.integers(1, 9_000),
    st.sampled_from((0.0, 64.0)),
)
def test_a_cooldown_keeps_its_budget_and_is_as_long_as_wanted_where_that_holds_it(
    seen: int, size: int, share: float, budget: float, population: int, per_step: float
) -> None:
    task = task_of(eval_data=tuple(part[:1].expand(population, *part.shape[1:]) for part in classification(1)))
    session = session_of(Path("unused"), task)
    price = size + per_step
    leg = finished(session, stable_leg(batch_size=size, step_price=price), examples=seen)
    found = cooldown(session, leg, "cool", SHORT, share=share, budget=budget)
    wanted, cost = round(share * seen / size), population / 3.0
    if found is None:
        assert min(wanted, (budget - min(cost, budget / 2)) / price) < LEAST_COOLDOWN_STEPS
        return
    assert found.budget == found.cooldown_steps * price + (cost if found.ends_evaluated else 0.0)
    assert LEAST_COOLDOWN_STEPS <= found.cooldown_steps <= wanted
    assert found.budget <= budget * (1 + 1e-9)
    assert found.ends_evaluated == (cost <= budget / 2 and cost <= wanted * price)
    assert found.cooldown_steps == wanted or found.budget + price > budget
    assert (found.continues, found.name, found.learning_rate) == ("stable", "cool", RATE)


@pytest.mark.parametrize(("warmup", "is_there"), [(0, True), (320, True), (321, False)])
def test_a_run_that_has_not_warmed_up_is_not_cooled_down(warmup: int, is_there: bool, tmp_path: Path) -> None:
    session = session_of(tmp_path, task_of(warmup_examples=warmup))
    leg = finished(session, stable_leg(), examples=320)
    assert (cooldown(session, leg, "cool", SHORT, share=0.25, budget=1e6) is not None) == is_there


def test_short_runs_cool_down_over_the_last_fifth_of_what_is_seen(tmp_path: Path) -> None:
    session = session_of(tmp_path)
    legs = [stable_leg(), stable_leg(name="beside", learning_rate=3 * RATE)]
    run_legs(session.shared, legs, session.journal)
    session.run(legs)
    cooldowns_of_short_runs(session, legs)
    for leg in legs:
        part = session.parts[f"{leg.name}-cooldown"]
        assert part.branch is not None
        assert part.branch.falls == (320, 400)
        assert part.branch.learning_rate == leg.learning_rate
    assert SHORT_COOLDOWN == 0.25


@pytest.mark.parametrize(
    ("cooled", "tried", "best"),
    [
        ({3.0: 0.5, 1.0: 0.4}, [3.0, 1.0], 1.0),  # the highest of those that cooled is behind: no higher one is tried
        ({3.0: 0.4, 1.0: 0.5, 9.0: 0.6}, [3.0, 1.0, 9.0], 3.0),
        ({3.0: 0.4, 1.0: 0.5, 9.0: 0.3}, [3.0, 1.0, 9.0], 9.0),  # 27 would be a fourth
    ],
)
def test_the_run_goes_on_that_cooled_down_to_the_lowest_loss(
    cooled: dict[float, float], tried: list[float], best: float, tmp_path: Path
) -> None:
    """Before the decay rates of 3, 1, 9 and 27 had the lowest losses, in this order."""
    session, ran = session_of(tmp_path, budget=3_000), list[float]()

    def run(self: Session, legs: list[Leg]) -> list[Part]:
        for leg in legs:
            ran.append(leg.learning_rate)
            branch = Branch(leg.batch_size, leg.learning_rate, LossCurve((400,), (cooled[leg.learning_rate],)))
            self.parts[leg.name] = Part(Spending(leg.part, leg.budget, 0, 0.0), branch=branch)
        return [self.parts[leg.name] for leg in legs]

    legs = [
        finished(session, stable_leg(name=f"large-{k}", learning_rate=rate), examples=320)
        for k, rate in enumerate((3.0, 1.0, 9.0, 27.0))
    ]
    with patch.object(Session, "run", run):
        (ranked,) = cooldowns_of_short_runs(session, legs)
    assert ran == tried
    assert ranked[0].learning_rate == best
    assert sorted(leg.learning_rate for leg in ranked) == [1.0, 3.0, 9.0, 27.0]
    spent = sum(part.spending.examples for part in session.parts.values() if part.spending.part == SHORT)
    assert 0 < spent <= SHARES[SHORT] * session.budget


def test_runs_too_short_to_cool_down_keep_their_order(tmp_path: Path) -> None:
    session = session_of(tmp_path)
    legs = [finished(session, stable_leg(name=f"large-{k}", learning_rate=3.0**-k), examples=8) for k in range(3)]
    assert cooldowns_of_short_runs(session, legs, []) == [legs, []]


def test_two_cooldowns_of_different_length_off_a_long_run(tmp_path: Path) -> None:
    session = session_of(tmp_path, task_of(eval_data=classification(6)))
    leg = stable_leg(part="long runs", budget=1_600.0)
    session.run([leg])
    seen = session.parts["stable"].examples_seen
    cooldowns_of_long_runs(session, [leg])
    branches = [part.branch for name, part in session.parts.items() if part.branch and "cooldown" in name]
    falls = [branch.falls for branch in branches if branch.falls is not None]
    assert [begin for begin, _ in falls] == [seen, seen]
    lengths = [(end - begin) / seen for begin, end in falls]
    assert lengths == pytest.approx(LONG_COOLDOWNS, abs=0.5 * SIZE / seen)
    assert all(session.parts[f"stable-cooldown-{k}"].spending.part == LONG for k in range(2))


def test_the_longer_of_two_gives_way_where_the_budget_is_short(tmp_path: Path) -> None:
    session = session_of(tmp_path, budget=2_000)
    leg = finished(session, stable_leg(part="long runs"), examples=4_000, spent=SHARES["long runs"] * 2_000)
    for part in ("short runs, large batch", "short runs, small batch", SHORT):
        finished(session, stable_leg(name=part, part=part), examples=1, spent=SHARES[part] * 2_000)
    with patch.object(Session, "run", lambda self, legs: made.extend(legs)):
        made: list[Leg] = []
        cooldowns_of_long_runs(session, [leg])
    assert sum(leg.budget for leg in made) <= SHARES[LONG] * 2_000
    assert len(made) == 2
    assert made[0].cooldown_steps <= made[1].cooldown_steps + 1


def test_parallel_cooldowns_off_one_snapshot(tmp_path: Path) -> None:
    parts = []
    for backend in ("sequential", "threading"):
        (tmp_path / backend).mkdir()
        session = session_of(tmp_path / backend)
        leg = stable_leg(part="long runs", budget=1_600.0)
        with joblib.parallel_config(backend=backend, n_jobs=2):
            session.run([leg])
            cooldowns_of_long_runs(session, [leg])
        parts.append([session.parts[f"stable-cooldown-{k}"].branch for k in range(2)])
    for other in parts[1:]:
        for mine, theirs in zip(parts[0], other, strict=True):
            assert mine is not None
            assert theirs is not None
            assert mine.learning_rate_schedule == theirs.learning_rate_schedule
            assert mine.last_loss == pytest.approx(theirs.last_loss, rel=1e-3)

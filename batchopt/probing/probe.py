"""The probing phase: what to measure, in which order, and for how much of the budget.

    step time            timed steps of a throw-away run at several batch sizes
    learning-rate range  a run whose rate rises until the loss blows up; skipped where a rate is given
    short runs           two batch sizes, several learning rates each, successive halving
    reference run        the best run of the larger batch size goes on to the end of its share
    noise scales         at initialisation and at five points of the reference run, each loss level once
    later branches       from a point of the reference run with another batch size, on the clock after a burn-in

Each has a share of the budget, and a leg never spends more than its own, so the whole never does. All parts have fixed
names and are kept in a journal as they finish: the same call goes on where it stopped.
"""

from __future__ import annotations

import math
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch

from batchopt._checks import check_count, check_positive
from batchopt.errors import BudgetError, NonFiniteLossError, RecordError, TaskError
from batchopt.evidence import Branch, ProbeReport, Provenance, Spending
from batchopt.noise_scale import MeasuredAt
from batchopt.probing.branches import Leg, SharedTask, run_legs
from batchopt.probing.data import evaluation_examples
from batchopt.probing.journal import Identity, Journal, Part
from batchopt.probing.learning_rate_range import find_learning_rate_range
from batchopt.probing.measure import measure_run
from batchopt.probing.run import TrainingRun, load_snapshot
from batchopt.probing.step_time import measure_step_cost
from batchopt.probing.task import TrainingTask
from batchopt.step_cost import StepCost

Progress = Callable[[str, float], None]

SHARES = {
    "step time": 0.04,
    "learning-rate range": 0.03,
    "short runs, small batch": 0.22,
    "short runs, large batch": 0.16,
    "reference run": 0.27,
    "noise scales": 0.14,
    "later branches": 0.14,
}
"""Share of the budget that each part may spend."""

REFERENCE_STEPS = 250
"""The reference batch size is chosen so that the reference run takes at least this many steps."""
FIRST_RUNG_STEPS = 28
"""Least steps of a first-rung run: enough for four evaluations after initialisation."""
RATE_FACTOR = 3.0
"""Neighbouring learning rates of the short runs, where none is given."""
SMALL_RATES, LARGE_RATES = 4, 3
RUNGS = (1.0, 2.0, 4.0)
"""What a short run may spend in each rung of successive halving, in units of the first."""
LEVELS = 6
"""Points at which the noise scale is measured."""
RELATIVE_WIDTH = 0.2
BURN_IN = 0.3


def probe(
    task: TrainingTask,
    *,
    examples: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    learning_rate: float | None = None,
    batch_sizes: tuple[int, int] | None = None,
    journal: str | Path | None = None,
    progress: Progress | None = None,
) -> ProbeReport:
    """Measure what a forecast needs: noise scales, short runs, step cost.

    Args:
        task: what to train; a data set, not a stream.
        examples: ceiling on all examples that get a gradient, evaluation forwards counted a third each.
        seconds: ceiling on wall-clock time; turned into examples by the measured step cost. One of the two is needed.
        seed: of everything random.
        learning_rate: a rate known to be good at a mid batch size; searched if None.
        batch_sizes: smallest and largest batch size to run.
        journal: folder in which finished parts are kept; the same call with the same folder goes on where it
            stopped. A temporary folder if None.
        progress: called with a part's name and the share of the budget that is spent (0 to 1).

    Returns:
        The report. Where a loss became NaN or the time ran out, it holds what was measured and says so in `stopped`.

    Raises:
        BudgetError: the budget is too small for a single short run at every setting.
        TaskError: the task cannot be trained as written (a stream, a wrong loss, no trainable parameter, ...).
        RecordError: the journal belongs to another probe.
    """
    _check_arguments(task, examples, seconds, learning_rate, batch_sizes)
    run = TrainingRun(task, learning_rate=learning_rate or 1.0, seed=seed)
    parameters = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    population = task.population
    if population is None:
        raise TaskError("a stream of batches cannot be run twice from one point: measure it with measure_noise_scale")
    identity = Identity(examples, seconds, seed, learning_rate, batch_sizes, population, parameters)
    with tempfile.TemporaryDirectory(prefix="batchopt-") as private:
        folder = Path(journal) if journal is not None else Path(private) / "journal"
        kept = Journal.open(folder, identity)
        state = _Probe(
            task=task,
            shared=SharedTask(task, Path(private)),
            journal=kept,
            seed=seed,
            progress=progress or _silent,
            deadline=None if seconds is None else time.time() + seconds - kept.seconds_spent(),
            parts={},
        )
        return _run(
            state, examples, seconds, learning_rate, batch_sizes, _provenance(task, seed, population, parameters)
        )


@dataclass(slots=True)
class _Probe:
    """A probe under way: the parts that finished, by name, in order."""

    task: TrainingTask
    shared: SharedTask
    journal: Journal
    seed: int
    progress: Progress
    deadline: float | None
    parts: dict[str, Part]
    budget: int = 0
    initial_loss: float = math.nan

    def do(self, name: str, work: Callable[[], Part]) -> Part:
        part = self.journal.do(name, work)
        self._add(name, part)
        return part

    def legs(self, legs: Sequence[Leg]) -> list[Part]:
        results = run_legs(self.shared, [replace(leg, deadline=self.deadline) for leg in legs], self.journal)
        for leg, part in zip(legs, results, strict=True):
            self._add(leg.name, part)
        return results

    def _add(self, name: str, part: Part) -> None:
        self.parts[name] = part
        spent = sum(part.spending.examples for part in self.parts.values())
        self.progress(part.spending.part, min(1.0, spent / self.budget) if self.budget else 0.0)

    def out_of_time(self) -> bool:
        return self.deadline is not None and time.time() > self.deadline


class _Stop(Exception):  # noqa: N818  (it is not an error: the probe ends with what it has)
    """The probe cannot go on; its report says why."""


def _run(
    state: _Probe,
    examples: int | None,
    seconds: float | None,
    learning_rate: float | None,
    batch_sizes: tuple[int, int] | None,
    provenance: Provenance,
) -> ProbeReport:
    stopped, reference = None, None
    low, high = batch_sizes or (1, provenance.population or 1)
    try:
        cost = _step_cost(state, examples, seconds, high)
        state.budget = _budget(examples, seconds, cost)
        small, large = _two_batch_sizes(state, low, high, provenance.population or high)
        _initial(state, learning_rate, large)
        rates = _rates(state, learning_rate, small)
        _short_runs(state, "small", small, rates[:SMALL_RATES], rungs=3)
        winner = _short_runs(state, "large", large, rates[:LARGE_RATES], rungs=2)
        reference = _reference(state, winner, large)
        _later_branches(state, reference, small, large, low, high)
    except _Stop as stop:
        stopped = str(stop)
    return _report(state, reference, stopped, provenance)


def _step_cost(state: _Probe, examples: int | None, seconds: float | None, high: int) -> StepCost:
    share = SHARES["step time"]

    def work() -> Part:
        cost, spending = measure_step_cost(
            state.task,
            learning_rate=1e-6,
            max_batch_size=high,
            seconds=2.0 if seconds is None else min(2.0, share * seconds),
            max_examples=None if examples is None else int(share * examples),
            seed=state.seed,
        )
        return Part(replace(spending, part="step time"), step_cost=cost)

    try:
        part = state.do("step-time", work)
    except NonFiniteLossError as error:
        raise _Stop(f"the loss is not finite at initialisation ({error})") from None
    if part.step_cost is None:
        raise RecordError("the journal's part step-time holds no step cost: delete the journal and begin anew")
    return part.step_cost


def _budget(examples: int | None, seconds: float | None, cost: StepCost) -> int:
    if seconds is None:
        return examples or 0
    by_time = int(0.8 * seconds / (cost(64) / 64))
    return by_time if examples is None else min(by_time, examples)


def _two_batch_sizes(state: _Probe, low: int, high: int, population: int) -> tuple[int, int]:
    """The batch sizes of the short runs, a factor of 8 apart where the bounds allow it.

    The larger is as large as leaves the reference run and each first-rung run enough steps.

    Raises:
        BudgetError: the bounds leave only one batch size, or the budget no run of four evaluations.
    """
    evaluations = 4 * evaluation_examples(state.task) / 3.0
    by_reference = SHARES["reference run"] * state.budget / REFERENCE_STEPS
    by_rung = (_unit("large") * state.budget - evaluations) / FIRST_RUNG_STEPS
    ceiling = max(low, min(high, population // 2))
    large = min(max(_power_of_two(min(by_reference, by_rung)), 8 * low), ceiling)
    small = max(low, large // 8)
    if small >= large:
        raise BudgetError(
            f"two batch sizes are needed to see a trade-off, and the bounds {low} to {high} leave only {large}"
        )
    least = max(
        (evaluations + FIRST_RUNG_STEPS * size) / _unit(name) for name, size in (("small", small), ("large", large))
    )
    if state.budget < least:
        raise BudgetError(
            f"the budget must be at least {math.ceil(least)} examples "
            f"for short runs at batch sizes {small} and {large}, got {state.budget}: "
            "raise it, lower the batch sizes, or give a smaller eval_data"
        )
    return small, large


def _power_of_two(value: float) -> int:
    return int(2 ** math.floor(math.log2(max(1.0, value))))


def _unit(which: str) -> float:
    """Share of the budget of one first-rung run. One run more than the ladder's is set aside for extending it."""
    if which == "small":
        return SHARES["short runs, small batch"] / ((SMALL_RATES + 1) * RUNGS[0] + 2 * RUNGS[1] + RUNGS[2])
    return SHARES["short runs, large batch"] / ((LARGE_RATES + 1) * RUNGS[0] + 2 * RUNGS[1])


def _initial(state: _Probe, learning_rate: float | None, batch_size: int) -> None:
    """Loss and noise scale at initialisation."""

    def work() -> Part:
        began = time.perf_counter()
        run = TrainingRun(state.task, learning_rate=learning_rate or 1.0, seed=state.seed)
        loss = run.evaluate()
        share = int(SHARES["noise scales"] * state.budget / LEVELS - evaluation_examples(state.task) / 3.0)
        noise = measure_run(run, relative_width=RELATIVE_WIDTH, max_examples=share, seed=state.seed)
        at = MeasuredAt(0, loss, batch_size, learning_rate or 1.0)
        spent = noise.examples + evaluation_examples(state.task) / 3.0
        spending = Spending("noise scales", spent, 0, time.perf_counter() - began)
        return Part(spending, noise_scale=replace(noise, at=at))

    try:
        part = state.do("noise-0", work)
    except NonFiniteLossError as error:
        raise _Stop(f"the loss is not finite at initialisation ({error})") from None
    if part.noise_scale is not None and part.noise_scale.at is not None:
        state.initial_loss = part.noise_scale.at.loss


def _rates(state: _Probe, learning_rate: float | None, small: int) -> list[float]:
    """Learning rates of the short runs, falling."""
    if learning_rate is not None:
        return [learning_rate * factor for factor in (4.0, 2.0, 1.0, 0.5, 0.25)]
    budget = SHARES["learning-rate range"] * state.budget

    def work() -> Part:
        top, spending = find_learning_rate_range(
            state.task, budget=budget, seed=state.seed, largest_batch=max(32, small)
        )
        return Part(spending, learning_rate=top)

    top = state.do("learning-rate-range", work).learning_rate or 1.0
    return [top / 2.0 / RATE_FACTOR**k for k in range(SMALL_RATES)]


def _short_runs(state: _Probe, which: str, batch_size: int, rates: list[float], *, rungs: int) -> Leg:
    """Successive halving over learning rates; returns the last leg of the best run.

    Where the best of the first rung is the highest or the lowest rate, one more beyond it is tried.
    """
    unit = _unit(which) * state.budget
    first = Leg(
        name="",
        part=f"short runs, {which} batch",
        batch_size=batch_size,
        learning_rate=1.0,
        budget=unit * RUNGS[0],
        seed=state.seed,
        initial_loss=state.initial_loss,
    )
    legs = [replace(first, name=f"{which}-{k}-rung-0", learning_rate=rate) for k, rate in enumerate(rates)]
    ranked = _ranked(legs, state.legs(legs))
    if ranked and ranked[0].learning_rate in (max(rates), min(rates)):
        step = rates[0] / rates[1] if ranked[0].learning_rate == max(rates) else rates[1] / rates[0]
        beyond = replace(first, name=f"{which}-{len(rates)}-rung-0", learning_rate=ranked[0].learning_rate * step)
        legs = [*legs, beyond]
        ranked = _ranked(legs, state.legs(legs))
    for rung, width in zip(range(1, rungs), (2, 1), strict=False):
        _check_alive(state, ranked, batch_size)
        going_on = [
            replace(
                leg,
                name=leg.name.replace(f"rung-{rung - 1}", f"rung-{rung}"),
                continues=leg.name,
                budget=unit * RUNGS[rung],
            )
            for leg in ranked[:width]
        ]
        ranked = _ranked(going_on, state.legs(going_on)) or ranked
    _check_alive(state, ranked, batch_size)
    return ranked[0]


def _check_alive(state: _Probe, ranked: list[Leg], batch_size: int) -> None:
    if state.out_of_time():
        raise _Stop("the time was up")
    if not ranked:
        raise _Stop(f"every learning rate that was tried at batch size {batch_size} diverged; give one that works")


def _ranked(legs: Sequence[Leg], parts: Sequence[Part]) -> list[Leg]:
    """Legs whose run is alive, the lowest last loss first."""
    last = {leg: loss for leg, part in zip(legs, parts, strict=True) if (loss := _last_loss(part)) is not None}
    return sorted(last, key=lambda leg: last[leg])


def _last_loss(part: Part) -> float | None:
    """The last loss of a run; None if it diverged."""
    if part.branch is None or part.branch.outcome == "diverged":
        return None
    return part.branch.curve.losses[-1]


def _reference(state: _Probe, winner: Leg, batch_size: int) -> Leg:
    """Carry the best large-batch run on in segments; measure the noise scale at every segment's end."""
    budget = SHARES["reference run"] * state.budget
    leg = winner
    for level, name in enumerate((winner.name.replace("rung-1", "rung-0"), winner.name), start=1):
        if name in state.parts:
            _noise(state, name, level, leg)
    for k, share in enumerate((0.15, 0.35, 0.5)):
        segment = replace(
            leg, name=f"reference-{k}", part="reference run", continues=leg.name, leaves=None, budget=share * budget
        )
        (part,) = state.legs([segment])
        if _last_loss(part) is None:
            raise _Stop(f"the reference run diverged at batch size {batch_size}: {part.failure or 'its loss blew up'}")
        leg = segment
        _noise(state, segment.name, 3 + k, segment)
        if state.out_of_time():
            raise _Stop("the time was up")
    return leg


def _noise(state: _Probe, of: str, level: int, leg: Leg) -> None:
    """Noise scale at the end of a leg, within its share of the budget."""
    branch = state.parts[of].branch
    if branch is None:
        return

    def work() -> Part:
        began = time.perf_counter()
        run = TrainingRun(state.task, learning_rate=leg.learning_rate, seed=state.seed)
        load_snapshot(run, state.journal.snapshot(of))
        share = int(SHARES["noise scales"] * state.budget / LEVELS)
        noise = measure_run(run, relative_width=RELATIVE_WIDTH, max_examples=share, seed=state.seed)
        at = MeasuredAt(branch.curve.examples[-1], branch.curve.losses[-1], leg.batch_size, leg.learning_rate)
        spending = Spending("noise scales", float(noise.examples), 0, time.perf_counter() - began)
        return Part(spending, noise_scale=replace(noise, at=at))

    try:
        state.do(f"noise-{level}", work)
    except NonFiniteLossError as error:
        raise _Stop(f"a gradient is not finite at loss {branch.curve.losses[-1]:.4g} ({error})") from None


def _later_branches(state: _Probe, reference: Leg, small: int, large: int, low: int, high: int) -> None:
    """Branches from a point of the reference run at a smaller and a larger batch size.

    The learning rate goes with the root of the batch size. After the change the loss first settles to the new setting's
    own level: a burn-in that is not on the clock.
    """
    origin = state.parts["reference-0"].branch
    sizes = [size for size in (max(small, large // 4), min(4 * large, high)) if low <= size <= high and size != large]
    if origin is None or not sizes:
        return
    budget = SHARES["later branches"] * state.budget / len(sizes)
    state.legs(
        [
            Leg(
                name=f"later-{size}",
                part="later branches",
                batch_size=size,
                learning_rate=reference.learning_rate * math.sqrt(size / large),
                budget=budget,
                seed=state.seed,
                leaves="reference-0",
                start_examples=origin.curve.examples[-1],
                burn_in=BURN_IN,
                initial_loss=state.initial_loss,
            )
            for size in sizes
        ]
    )


def _report(state: _Probe, last: Leg | None, stopped: str | None, provenance: Provenance) -> ProbeReport:
    runs: dict[tuple[int, float, int], Branch] = {}
    for part in state.parts.values():
        if part.branch is not None:  # a later leg of the same run holds the whole curve
            runs[part.branch.batch_size, part.branch.learning_rate, part.branch.start_examples] = part.branch
    names = [last.name] if last else [name for name in state.parts if name.startswith("reference-")]
    reference = state.parts[names[-1]].branch if names else None
    spending: dict[str, Spending] = {}
    for part in state.parts.values():
        spending[part.spending.part] = _sum(spending.get(part.spending.part), part.spending)
    costs = [part.step_cost for part in state.parts.values() if part.step_cost is not None]
    return ProbeReport(
        reference=reference,
        branches=tuple(branch for branch in runs.values() if branch != reference),
        noise_scales=tuple(part.noise_scale for part in state.parts.values() if part.noise_scale is not None),
        step_cost=costs[0] if costs else None,
        spending=tuple(spending.values()),
        budget_examples=state.budget,
        stopped=stopped,
        provenance=provenance,
    )


def _sum(first: Spending | None, second: Spending) -> Spending:
    if first is None:
        return second
    return Spending(
        second.part, first.examples + second.examples, first.steps + second.steps, first.seconds + second.seconds
    )


def _provenance(task: TrainingTask, seed: int, population: int, parameters: int) -> Provenance:
    packages = ("batchopt", "torch", "numpy", "scipy")
    device = str(task.torch_device)
    if task.torch_device.type == "cuda":
        device = f"{device} ({torch.cuda.get_device_name(task.torch_device)})"
    versions = {name: version(name) for name in packages} | {"python": platform.python_version()}
    return Provenance(versions, device, seed, population, parameters)


def _check_arguments(
    task: TrainingTask,
    examples: int | None,
    seconds: float | None,
    learning_rate: float | None,
    batch_sizes: tuple[int, int] | None,
) -> None:
    if not isinstance(task, TrainingTask):
        raise TypeError(f"task must be a TrainingTask, got {type(task).__name__}")
    if examples is None and seconds is None:
        raise ValueError("a probe needs a budget: give examples=..., or seconds=...")
    if examples is not None:
        check_count("examples", examples)
    if seconds is not None:
        check_positive("seconds", seconds)
    if learning_rate is not None:
        check_positive("learning_rate", learning_rate)
    if batch_sizes is not None:
        check_count("smallest batch size", batch_sizes[0])
        check_count("largest batch size", batch_sizes[1], least=batch_sizes[0])


def _silent(part: str, done: float) -> None:
    """Progress that nobody watches."""

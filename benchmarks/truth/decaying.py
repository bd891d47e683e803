"""Sweeps of runs whose learning rate decays: which of them a problem still needs, and running them, resumably.

A run of shape "wsd" warms up, stays at its peak rate, and cools down: linearly to zero, over the last fifth of its
horizon. All horizons of one batch size, rate and seed branch off one stable run. Horizons are the same powers of two
for all batch sizes, so that batch sizes can be compared at equal examples. Shapes "cosine" and "linear" are runs of
their own for each horizon, at a few batch sizes of a few problems, to see how far what holds for one shape holds for
the others.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed

from batchopt.errors import NonFiniteLossError
from batchopt.probing.evaluation import evaluation_points
from batchopt.probing.run import TrainingRun
from truth import quadratic
from truth.curves import FOLDER, Run, pack, unpack
from truth.problems import PROBLEMS, Problem, make
from truth.sweep import on_grid
from truth.training import DIVERGED, DIVERGED_EVALUATIONS, FIRST_EVALUATION_STEPS, held_out_loss, whole_steps

COOLDOWN = 0.2
"""Share of the horizon over which a wsd rate falls."""
LEAST_STEPS = 16
"""Of a horizon: a decay of fewer than three steps is mostly rounding."""
WARMUP, WARMUP_STEPS = 0.2, 32
"""A stable run warms up over this share of its first horizon, or of so many steps where that is longer."""
WARMUP_OF_SHAPES = 0.05
"""Share of its horizon over which a cosine or linear run warms up."""
EVALUATION_RATIO = 1.3
COOLDOWN_EVALUATIONS = 2
PAST_LAST_LOSS = 0.98
"""A ladder of horizons ends at this multiple of the problem's last loss: the mean of the seeds should reach it too."""
BEHIND = 2.0
"""A rate with which the last loss takes this many times the horizon of another rate is not followed further."""
HOPELESS = 4.0
"""Nor is one whose loss at a horizon is above that of another rate at a quarter of it."""
RESCALED = {"transformer": 32}
"""Problems that are swept with beta2 and weight decay following the batch size as well, and what these were set for."""
SHAPED = ("digits_mlp", "cifar_cnn", "mnist_cnn_adam", "transformer")
"""Problems with cosine and linear runs: SGD, SGD with momentum, Adam and AdamW."""
SHAPES = ("cosine", "linear")
SHAPE_HORIZONS = 3
"""The last of the ladder."""


@dataclass(frozen=True, slots=True)
class Job:
    """Runs that are made together: all horizons of a stable run, or one cosine or linear run."""

    batch_size: int
    learning_rate: float
    seed: int
    shape: str
    horizons: tuple[int, ...]
    rescaled: bool = False

    @property
    def key(self) -> tuple[int, float, int, str, int, bool]:
        """What tells a job from the others of its problem."""
        first = 0 if self.shape == "wsd" else self.horizons[0]
        return self.batch_size, self.learning_rate, self.seed, self.shape, first, self.rescaled


def multiplier(shape: str, examples: float, horizon: int, warmup: float) -> float:
    """Of the peak learning rate after so many examples."""
    if examples < warmup:
        return examples / warmup
    if shape == "wsd":
        return min(1.0, (horizon - examples) / (COOLDOWN * horizon)) if horizon else 1.0
    progress = (examples - warmup) / (horizon - warmup)
    return 1.0 - progress if shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def horizons_of(problem: Problem, size: int, constant: Sequence[Run]) -> tuple[int, ...]:
    """Powers of two, from the first at which any batch size could end at the first loss to twice what a constant rate
    takes to the last at this batch size."""
    first = 2 ** math.floor(math.log2(min(run.examples_to(problem.losses[0]) for run in constant)))
    first = max(first, 2 ** math.ceil(math.log2(LEAST_STEPS * size)))
    own = min(run.examples_to(problem.losses[-1]) for run in constant if run.batch_size == size)
    last = 2 ** math.ceil(math.log2(own)) if math.isfinite(own) else problem.most_examples
    return tuple(2**k for k in range(round(math.log2(first)), math.floor(math.log2(max(first, 2 * last))) + 1))


def warmup_of(problem: Problem, size: int, constant: Sequence[Run]) -> float:
    """Examples over which a stable run warms up."""
    return WARMUP * max(horizons_of(problem, size, constant)[0], WARMUP_STEPS * size)


def train(name: str, job: Job, *, warmup: float, others: Sequence[Run]) -> list[Run]:
    """Make the runs of a job.

    Args:
        name: of the problem.
        job: what to run.
        warmup: examples over which the rate rises.
        others: cooldowns of the same batch size and seed at other rates: a job that is far behind them ends early.
    """
    torch.set_num_threads(1)
    if PROBLEMS[name].closed_form is not None:
        return _closed_form(name, job, warmup, others)
    return _Training(name, job, warmup).runs(others)


class _Training:
    """A run that is evaluated on the way and may branch off cooldowns."""

    def __init__(self, name: str, job: Job, warmup: float) -> None:
        self._problem, self._job, self._warmup = PROBLEMS[name], job, warmup
        self._task, self._held_out = make(name)
        if job.rescaled:
            self._task = replace(self._task, rescale=("weight_decay", "beta2"), base_batch_size=RESCALED[name])
        self._run = TrainingRun(self._task, learning_rate=job.learning_rate, seed=job.seed)
        self._first_loss = math.inf

    def runs(self, others: Sequence[Run]) -> list[Run]:
        if self._job.shape != "wsd":
            horizon = self._job.horizons[0]
            points, diverged = self._to(self._points(horizon), horizon)
            return [self._record(points, horizon, diverged)]
        stable: list[tuple[int, float, float]] = []
        cooldowns: list[Run] = []
        diverged = False
        for horizon in self._job.horizons:
            begin = whole_steps([round((1.0 - COOLDOWN) * horizon)], self._job.batch_size)[0]
            points, diverged = self._to(
                [p for p in self._points(begin) if p > self._run.examples_seen or not stable], 0
            )
            stable += points
            if diverged or self._has_diverged(stable):
                diverged = True
                break
            cooldowns.append(self._cooldown(horizon))
            if is_done(self._problem, cooldowns, others):
                break
        return [self._record(stable, 0, diverged), *cooldowns]

    def _cooldown(self, horizon: int) -> Run:
        kept = copy.deepcopy(self._run.state_dict())
        begin, size = self._run.examples_seen, self._job.batch_size
        points = [begin + (horizon - begin) * k // COOLDOWN_EVALUATIONS for k in range(COOLDOWN_EVALUATIONS + 1)]
        found, diverged = self._to(whole_steps(points[1:], size), horizon)
        self._run.load_state_dict(kept)
        return self._record(found, horizon, diverged)

    def _points(self, last: int) -> list[int]:
        size = self._job.batch_size
        first = min(max(FIRST_EVALUATION_STEPS * size, 64), last)
        return whole_steps(evaluation_points(last, first=first, ratio=EVALUATION_RATIO), size)

    def _to(self, points: Sequence[int], horizon: int) -> tuple[list[tuple[int, float, float]], bool]:
        """Train on to every point and evaluate there; whether the loss ceased to be finite."""
        run, size, found = self._run, self._job.batch_size, []
        try:
            for until in points:
                while run.examples_seen < until:
                    middle = run.examples_seen + 0.5 * size
                    run.step(size, multiplier=multiplier(self._job.shape, middle, horizon, self._warmup))
                found.append((run.examples_seen, run.evaluate(), held_out_loss(self._task, run, self._held_out)))
        except NonFiniteLossError:
            return found, True
        return found, False

    def _has_diverged(self, points: Sequence[tuple[int, float, float]]) -> bool:
        latest = [loss for _, loss, _ in points[-DIVERGED_EVALUATIONS:]]
        return len(points) > DIVERGED_EVALUATIONS and min(latest) > DIVERGED * points[0][1]

    def _record(self, points: Sequence[tuple[int, float, float]], horizon: int, diverged: bool) -> Run:
        job = self._job
        examples, losses, held_out = zip(*points, strict=True) if points else ((), (), ())
        outcome = "diverged" if diverged else "reached" if horizon else "stopped"
        return Run(
            job.batch_size, job.learning_rate, job.seed, horizon, outcome, examples, losses, held_out, job.shape,
            job.rescaled,
        )  # fmt: skip


def _closed_form(name: str, job: Job, warmup: float, others: Sequence[Run]) -> list[Run]:
    size, problem = job.batch_size, PROBLEMS[name]
    runs: list[Run] = []
    for horizon in job.horizons:
        steps = math.ceil(horizon / size)
        multipliers = [multiplier(job.shape, (k + 0.5) * size, horizon, warmup) for k in range(steps)]
        begin = math.ceil((1.0 - COOLDOWN) * horizon / size) if job.shape == "wsd" else 0
        points = sorted({*(begin + (steps - begin) * k // COOLDOWN_EVALUATIONS for k in (1, 2))})
        found = quadratic.losses_under(size, job.learning_rate * np.array(multipliers))
        outcome = "reached" if np.isfinite(found[-1]) and found[-1] < DIVERGED * found[0] else "diverged"
        losses = tuple(float(found[k]) for k in points) if outcome == "reached" else ()
        examples = tuple(size * k for k in points) if losses else ()
        run = Run(size, job.learning_rate, job.seed, horizon, outcome, examples, losses, losses, job.shape)
        if outcome == "diverged":
            break
        runs.append(run)
        if is_done(problem, runs, others):
            break
    last = runs[-1].horizon if runs else job.horizons[0]
    multipliers = [min(1.0, (k + 0.5) * size / warmup) for k in range(math.ceil((1.0 - COOLDOWN) * last / size))]
    curve = quadratic.losses_under(size, job.learning_rate * np.array(multipliers))
    fine = np.isfinite(curve) & (curve < 10.0 * curve[0])
    steps = [k for k in evaluation_points(len(curve) - 1, first=4, ratio=EVALUATION_RATIO) if fine[: k + 1].all()]
    values = tuple(float(curve[k]) for k in steps)
    outcome = "stopped" if fine.all() else "diverged"
    stable = Run(size, job.learning_rate, job.seed, 0, outcome, tuple(size * k for k in steps), values, values, "wsd")
    return [stable, *runs]


def is_done(problem: Problem, cooldowns: Sequence[Run], others: Sequence[Run]) -> bool:
    """Whether a ladder has reached the last loss, or is too far behind other rates to be climbed further."""
    latest = cooldowns[-1]
    if latest.outcome == "diverged" or latest.losses[-1] <= PAST_LAST_LOSS * problem.losses[-1]:
        return True
    ends = [(run.horizon, run.losses[-1]) for run in others if run.horizon and run.outcome != "diverged"]
    if latest.horizon >= BEHIND * min((h for h, loss in ends if loss <= problem.losses[-1]), default=math.inf):
        return True
    return any(loss < latest.losses[-1] for horizon, loss in ends if HOPELESS * horizon <= latest.horizon)


def ends_of(runs: Sequence[Run]) -> dict[float, dict[int, float]]:
    """Log of the loss at the end, by rate and horizon, as a mean over seeds; infinite where one diverged."""
    found: dict[float, dict[int, list[float]]] = {}
    for run in runs:
        if run.horizon:
            end = math.inf if run.outcome == "diverged" else math.log(run.losses[-1])
            found.setdefault(run.learning_rate, {}).setdefault(run.horizon, []).append(end)
    return {
        rate: {horizon: float(np.mean(values)) for horizon, values in sorted(own.items())}
        for rate, own in found.items()
    }


def arrived(problem: Problem, ends: dict[float, dict[int, float]]) -> float:
    """The first horizon at whose end a rate is at the problem's last loss; infinite if there is none."""
    last = math.log(problem.losses[-1])
    return min((horizon for own in ends.values() for horizon, end in own.items() if end <= last), default=math.inf)


def missing(name: str, runs: Sequence[Run], constant: Sequence[Run]) -> Iterator[Job]:
    """The jobs that a problem needs next; none when its sweep is complete.

    The grid of rates of each batch size grows until the best one at every horizon has a neighbour on both sides. The
    second seed then runs the same jobs, where there is one.
    """
    problem = PROBLEMS[name]
    for rescaled in (False, True) if name in RESCALED else (False,):
        own = [run for run in runs if run.shape == "wsd" and run.rescaled == rescaled]
        for size in problem.decaying_batch_sizes:
            at_size = [run for run in own if run.batch_size == size]
            yield from _missing_ladders(problem, size, at_size, constant, rescaled)
    if name in SHAPED:
        stable = [run for run in runs if run.shape == "wsd" and not run.rescaled]
        for size in problem.batch_sizes[1::3]:
            for shape in SHAPES:
                yield from _missing_shapes(problem, size, shape, runs, [r for r in stable if r.batch_size == size])


def _missing_ladders(
    problem: Problem, size: int, runs: Sequence[Run], constant: Sequence[Run], rescaled: bool
) -> Iterator[Job]:
    horizons = horizons_of(problem, size, constant)
    seeds = problem.decaying_seeds
    first = [run for run in runs if run.seed == seeds[0]]
    rates = _grid(problem, ends_of(first)) or _first_rates(problem, size, constant)
    done = {(run.learning_rate, run.seed) for run in runs}
    wanted = [rate for rate in rates if (rate, seeds[0]) not in done]
    for rate in wanted:
        yield Job(size, rate, seeds[0], "wsd", horizons, rescaled)
    if wanted:
        return
    for rate in rates:
        climbed = tuple(run.horizon for run in first if run.learning_rate == rate and run.horizon) or horizons[:1]
        for seed in seeds[1:]:
            if (rate, seed) not in done:
                yield Job(size, rate, seed, "wsd", climbed, rescaled)


def _missing_shapes(
    problem: Problem, size: int, shape: str, runs: Sequence[Run], ladders: Sequence[Run]
) -> Iterator[Job]:
    ends = ends_of(ladders)
    horizons = sorted({horizon for own in ends.values() for horizon in own})
    best_of = {h: min((own[h], rate) for rate, own in ends.items() if h in own)[1] for h in horizons}
    for horizon in [h for h in horizons if h <= arrived(problem, ends)][-SHAPE_HORIZONS:]:
        own = [r for r in runs if (r.batch_size, r.shape, r.horizon) == (size, shape, horizon)]
        first = [run for run in own if run.seed == problem.seeds[0]]
        rates = _grid(problem, ends_of(first)) or {on_grid(problem, best_of[horizon], step) for step in (-1, 0, 1)}
        done = {(run.learning_rate, run.seed) for run in own}
        wanted = sorted(rate for rate in rates if (rate, problem.seeds[0]) not in done)
        for rate in wanted:
            yield Job(size, rate, problem.seeds[0], shape, (horizon,))
        if wanted:
            continue
        for rate in sorted(rates):
            for seed in problem.decaying_seeds[1:]:
                if (rate, seed) not in done:
                    yield Job(size, rate, seed, shape, (horizon,))


def _grid(problem: Problem, ends: dict[float, dict[int, float]]) -> list[float]:
    """The rates that were run and the neighbours of the best at every horizon, the highest first."""
    rates = set(ends)
    for horizon in {horizon for own in ends.values() for horizon in own if horizon <= arrived(problem, ends)}:
        best = min((own.get(horizon, math.inf), rate) for rate, own in ends.items())[1]
        rates |= {on_grid(problem, best, step) for step in (-1, 1)}
    if rates and not any(ends.values()):  # all diverged before their first cooldown
        rates.add(on_grid(problem, min(rates), -2))
    return sorted(rates, reverse=True)


def _first_rates(problem: Problem, size: int, constant: Sequence[Run]) -> list[float]:
    """Of the rate with which a constant run gets furthest: itself, its double, and half of it."""
    own = [run for run in constant if run.batch_size == size and run.outcome != "diverged"]
    best = min(own, key=lambda run: (run.examples_to(problem.losses[-1]), min(run.losses))).learning_rate
    octave = problem.rates_per_octave
    return [on_grid(problem, best, step) for step in (0, octave, -octave)]


class KeptJobs:
    """The runs of a decaying sweep that are done: those packed in the repository, and a journal of the jobs since."""

    def __init__(self, name: str) -> None:
        self._path = FOLDER / f"{name}-decaying.npz"
        self._journal = Path(__file__).parent / "out" / f"{name}-decaying.jsonl"
        runs = {run.key: run for run in unpack(self._path)} if self._path.exists() else {}
        if self._journal.exists():
            for line in self._journal.read_text(encoding="utf-8").splitlines():
                if line.endswith("]"):  # an interrupted write leaves part of a line
                    for fields in json.loads(line):
                        run = Run(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
                        runs[run.key] = run
        self.runs = list(runs.values())

    def add(self, runs: Sequence[Run]) -> None:
        """Keep the runs of a job."""
        self._journal.parent.mkdir(exist_ok=True)
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps([asdict(run) for run in runs]) + "\n")
        self.runs += runs

    def pack(self) -> None:
        """Write all to the repository."""
        if self.runs:
            pack(self.runs, self._path)


def sweep_decaying(name: str, *, workers: int = 1) -> list[Run]:
    """Run what the decaying sweep of a problem lacks, and pack its curves after every round."""
    problem, kept = PROBLEMS[name], KeptJobs(name)
    constant = unpack(FOLDER / f"{name}.npz")
    while wanted := list(missing(name, kept.runs, constant)):
        print(f"{name}: {len(kept.runs)} runs done, {len(wanted)} jobs to go", flush=True)
        jobs = (
            delayed(train)(
                name, job, warmup=_warmup(problem, job, constant),
                others=[r for r in kept.runs if (r.batch_size, r.seed, r.shape, r.rescaled)
                        == (job.batch_size, job.seed, job.shape, job.rescaled)],
            )
            for job in wanted
        )  # fmt: skip
        for runs in Parallel(n_jobs=workers, return_as="generator_unordered", pre_dispatch="n_jobs")(jobs):
            kept.add(runs)
        kept.pack()
    kept.pack()
    return kept.runs


def _warmup(problem: Problem, job: Job, constant: Sequence[Run]) -> float:
    if job.shape == "wsd":
        return warmup_of(problem, job.batch_size, constant)
    return WARMUP_OF_SHAPES * job.horizons[0]

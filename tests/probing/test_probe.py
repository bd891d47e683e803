"""The probe as a whole: budget, resuming, stopping, backends."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import joblib
import pytest
import torch
from torch import nn

import batchopt.probing.branches as branches_module
from batchopt.errors import BudgetError, NonFiniteLossError, RecordError, TaskError
from batchopt.evidence import ProbeReport, Spending
from batchopt.probing.branches import TIMED_STEPS, SharedTask
from batchopt.probing.budget import EXTRA_RATES, RATES, SHARES
from batchopt.probing.data import shuffled_indices
from batchopt.probing.evaluation import check_evaluation
from batchopt.probing.journal import Identity, Part
from batchopt.probing.probe import probe
from batchopt.probing.task import TrainingTask

BUDGET = 24_000
SIZES = (4, 32)
"""Batch sizes of the short runs at that budget."""


def make_task(**changes: object) -> TrainingTask:
    """A small classification problem; the tensors live in closures, as users write it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 10, generator=generator)
    y = (x[:, :3].sum(dim=1) > 0).long() + (x[:, 3] > 1).long()
    settings: dict[str, object] = {
        "model": lambda: nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 3)),
        "data": (x, y),
        "eval_data": (x[:128], y[:128]),
        "loss": lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none"),
        "optimizer": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
    }
    return TrainingTask(**(settings | changes))  # type: ignore[arg-type]


def timeless(report: ProbeReport) -> ProbeReport:
    """A report without its clock readings."""
    spending = tuple(
        Spending(part.part, 0.0 if part.part == "step time" else part.examples, 0, 0.0) for part in report.spending
    )
    return replace(report, spending=spending, step_cost=None)


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("probe") / "journal"


@pytest.fixture(scope="module")
def report(journal: Path) -> ProbeReport:
    return probe(make_task(), examples=BUDGET, seed=3, journal=journal)


def test_everything_is_measured_within_the_budget(report: ProbeReport) -> None:
    assert report.stopped is None
    assert report.examples_spent <= BUDGET
    spent = {part.part: part.examples for part in report.spending}
    assert sum(SHARES.values()) <= 1.0
    # The long runs have their part of what the short ones and their cooldowns left, and the last cooldowns the rest.
    first = [name for name in SHARES if "short runs" in name]
    left = sum(SHARES[name] * BUDGET - spent[name] for name in first)
    more = {
        "long runs": left * SHARES["long runs"] / (SHARES["long runs"] + SHARES["cooldowns of long runs"]),
        "cooldowns of long runs": left + SHARES["long runs"] * BUDGET - spent["long runs"],
    }
    for part, share in SHARES.items():
        assert 0 < spent[part] <= share * BUDGET + more.get(part, 0.0) + 1e-6, part
    for part in more:
        assert spent[part] > 0.9 * SHARES[part] * BUDGET  # a leg takes whole steps only
    assert [scale.kind for scale in report.noise_scales] == ["simple"] * 3
    assert sorted({branch.batch_size for branch in report.runs}) == [4, 32]
    assert report.step_cost is not None


def test_reference_is_the_longest_run_of_the_large_batch(report: ProbeReport) -> None:
    assert report.reference is not None
    runs = [run for run in report.runs if run.is_constant]
    same = [run for run in runs if run.batch_size == report.reference.batch_size]
    assert report.reference.examples == max(branch.examples for branch in same)
    assert report.reference.batch_size == max(branch.batch_size for branch in report.runs)
    levels = [reading.at.loss for reading in report.noise_scales if reading.at is not None]
    assert min(levels) == levels[-1]
    assert levels[-1] == pytest.approx(report.reference.curve.losses[-1])


def test_both_winners_go_on(report: ProbeReport) -> None:
    for size in SIZES:
        lengths = sorted((b.examples for b in report.runs if b.batch_size == size and b.is_constant), reverse=True)
        assert lengths[0] > 1.4 * lengths[1]


def test_short_runs_are_a_factor_of_three_of_learning_rate_apart(report: ProbeReport) -> None:
    search = SHARES["learning-rate search"] * BUDGET / (RATES + EXTRA_RATES)
    for size in SIZES:
        stable = [b for b in report.runs if b.batch_size == size and b.is_constant]
        rates = sorted(b.learning_rate for b in stable if b.examples > search)
        assert len(rates) >= 3
        assert [high / low for low, high in pairwise(rates)] == pytest.approx([3.0] * (len(rates) - 1))


def test_the_curves_are_the_losses_of_training_batches(report: ProbeReport) -> None:
    """Evaluations are a small share: each costs as much as 43 examples here."""
    for run in report.runs:
        assert run.training is not None
        assert run.training.examples[0] - (run.falls[0] if run.falls else 0) < max(run.batch_size, run.examples / 8)
        assert run.training.examples[-1] <= run.examples
        assert len(run.curve.losses) * 43 <= 0.2 * run.examples


def test_round_trip(report: ProbeReport, tmp_path: Path) -> None:
    report.save(tmp_path / "probe.json")
    assert ProbeReport.load(tmp_path / "probe.json") == report


def test_an_odd_budget_is_a_ceiling() -> None:
    assert probe(make_task(), examples=BUDGET + 1).examples_spent <= BUDGET + 1


def test_an_interrupted_probe_goes_on_where_it_stopped(report: ProbeReport, tmp_path: Path) -> None:
    journal = tmp_path / "probe.json.partial"
    interruptions = 0
    while True:
        calls = 0

        def interrupt(part: str, done: float) -> None:
            nonlocal calls
            calls += 1
            if calls > 4:
                raise KeyboardInterrupt

        before = {file.name: file.stat().st_mtime_ns for file in journal.glob("*.json")} if journal.exists() else {}
        try:
            # Progress is called for looked-up parts as well, so every try gets at least as far as the one before.
            resumed = probe(
                make_task(), examples=BUDGET, seed=3, journal=journal, progress=interrupt if interruptions < 2 else None
            )
            break
        except KeyboardInterrupt:
            interruptions += 1
        kept = {file.name: file.stat().st_mtime_ns for file in journal.glob("*.json")}
        assert all(kept[name] == stamp for name, stamp in before.items() if name != "identity.json")
    assert interruptions == 2
    assert timeless(resumed) == timeless(report)


def test_a_finished_part_is_not_run_again(report: ProbeReport, journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches_module, "run_leg", lambda *_: pytest.fail("a finished leg was run again"))
    assert probe(make_task(), examples=BUDGET, seed=3, journal=journal) == report


def test_steps_are_timed_again_along_the_runs(report: ProbeReport, journal: Path, tmp_path: Path) -> None:
    own = tmp_path / "journal"
    shutil.copytree(journal, own)
    first = Part.load(own / "step-time.json").step_cost
    assert first is not None
    timed = 0
    for file in own.glob("*.json"):
        if file.name == "identity.json":
            continue
        part = Part.load(file)
        assert (part.step_seconds is None) == (part.branch is None or part.spending.steps < TIMED_STEPS), file
        if part.branch is not None and part.step_seconds is not None:
            timed += 1
            replace(part, step_seconds=3.0 * first(part.branch.batch_size)).save(file)
    assert timed >= 10
    again = probe(make_task(), examples=BUDGET, seed=3, journal=own).step_cost
    assert again is not None
    assert [again(size) for size in SIZES] == pytest.approx([3.0 * first(size) for size in SIZES])
    assert timeless(report) == timeless(probe(make_task(), examples=BUDGET, seed=3, journal=own))


def test_runs_beside_one_another_are_not_timed(tmp_path: Path) -> None:
    with joblib.parallel_config(backend="threading", n_jobs=2):
        probe(make_task(), examples=BUDGET, seed=3, journal=tmp_path)
    assert Part.load(tmp_path / "rate-0.json").step_seconds is None


def test_a_journal_of_another_probe_is_refused(report: ProbeReport, journal: Path) -> None:
    with pytest.raises(RecordError, match="another probe"):
        probe(make_task(), examples=BUDGET, seed=1, journal=journal)


def test_a_journal_of_an_older_version_is_refused(report: ProbeReport, journal: Path, tmp_path: Path) -> None:
    old = tmp_path / "journal"
    shutil.copytree(journal, old)
    header = old / "identity.json"
    header.write_text(header.read_text().replace(Identity.SCHEMA, "batchopt.probe_identity/1"))
    with pytest.raises(RecordError, match=r"identity.json: was written by an older batchopt .* delete the folder"):
        probe(make_task(), examples=BUDGET, seed=3, journal=old)


def test_a_refused_budget_leaves_nothing_behind(tmp_path: Path) -> None:
    for examples in (400, 500, 590):
        with pytest.raises(BudgetError, match=rf"the budget must be at least \d+ examples .* got {examples}"):
            probe(make_task(), examples=examples, journal=tmp_path / "journal")


@pytest.mark.parametrize("backend", ["threading", "loky", "multiprocessing"])
def test_every_backend_gives_the_same_report(
    backend: str, report: ProbeReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    with joblib.parallel_config(backend=backend, n_jobs=2):
        parallel = probe(make_task(), examples=BUDGET, seed=3)
    ours, theirs = timeless(parallel), timeless(report)
    assert [branch.learning_rate for branch in ours.branches] == [branch.learning_rate for branch in theirs.branches]
    for mine, other in zip(ours.runs, theirs.runs, strict=True):
        # Another number of threads sums in another order, so float32 losses agree to rounding that training amplifies.
        assert mine.curve.examples == other.curve.examples
        assert mine.curve.losses == pytest.approx(other.curve.losses, rel=1e-3)


def test_the_task_is_pickled_once_for_all_branches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dumps: list[int] = []
    original: Callable[[object], bytes] = branches_module.cloudpickle.dumps

    def counted(value: object) -> bytes:
        dumps.append(1)
        return original(value)

    monkeypatch.setattr(branches_module.cloudpickle, "dumps", counted)
    shared = SharedTask(make_task(), tmp_path)
    joblib.Parallel(n_jobs=2, backend="loky")(joblib.delayed(_population)(shared) for _ in range(6))
    joblib.Parallel(n_jobs=2, backend="threading")(joblib.delayed(_population)(shared) for _ in range(6))
    assert len(dumps) == 1


def _population(shared: SharedTask) -> int | None:
    return shared.task.population


def test_a_loss_that_becomes_nan_ends_the_probe_with_what_was_measured() -> None:
    calls = 0

    def poisoned(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        losses = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
        return losses * (math.nan if calls > 1_700 and model.training else 1.0)

    report = probe(make_task(loss=poisoned), examples=BUDGET)
    assert report.stopped is not None
    assert report.noise_scales
    assert ProbeReport.from_json(report.to_json()) == report


def test_nan_from_the_start() -> None:
    def nan(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return model(batch[0]).sum(dim=1) * math.nan

    rule = "must be finite before any training, and the loss of a batch of 1 became nan after 0 steps .* look for NaN"
    with pytest.raises(NonFiniteLossError, match=rule):
        probe(make_task(loss=nan), examples=BUDGET)


def test_evaluation_data_that_are_not_finite() -> None:
    task = make_task()
    x, y = task.eval_data
    bad = x.clone()
    bad[3, 0] = math.nan
    rule = r"before any training, and the evaluated loss is nan or infinite, as that of eval_data\[3\] is: look"
    with pytest.raises(TaskError, match=rule):
        probe(replace(task, eval_data=(bad, y)), examples=BUDGET, learning_rate=0.1)


def test_an_example_that_is_not_finite_is_named() -> None:
    task = make_task()
    x, y = (part.repeat(5, *[1] * (part.ndim - 1)) for part in task.data)
    bad = int(shuffled_indices(3_000, seed=0, start=800, count=1)[0])
    x[bad] = math.nan
    rule = rf"before any training, and 1 of \d+ examples \(data\[{bad}\]\) have one that is nan .* values in the data"
    with pytest.raises(TaskError, match=rule):
        probe(replace(task, data=list(zip(x, y, strict=True))), examples=BUDGET, learning_rate=0.1)


def test_a_loss_that_counts_where_it_is_evaluated_is_refused() -> None:
    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        logits = model(batch[0])
        if model.training:
            return nn.functional.cross_entropy(logits, batch[1], reduction="none")
        return (logits.argmax(1) != batch[1]).float()

    with pytest.raises(TaskError, match=r"the same in training and in evaluation mode, .* \(it is 0 or 1 for every ex"):
        probe(make_task(loss=loss), examples=BUDGET)


def test_a_loss_that_follows_no_gradient_where_it_is_evaluated_is_fine() -> None:
    task = make_task()

    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        with torch.set_grad_enabled(model.training):
            return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    check_evaluation(replace(task, loss=loss), task.make_model())


class Clock:
    """Time that passes only as losses are worked out, 4 ms and 0.1 ms an example, however busy the machine is."""

    def __init__(self) -> None:
        self.now = 0.0

    def read(self) -> float:
        return self.now

    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        self.now += 4e-3 + 1e-4 * len(batch[0])
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock.read)
    monkeypatch.setattr(time, "perf_counter", clock.read)
    return clock


def test_seconds_are_a_ceiling_too(clock: Clock) -> None:
    report = probe(make_task(loss=clock.loss), seconds=5.0)
    assert report.seconds_spent == pytest.approx(clock.now, rel=0.1)
    # One leg or measurement may be under way when the time is up.
    assert report.seconds_spent < 8.0
    assert report.budget_examples > 0


def test_steps_count_by_their_time_where_the_budget_is_one(clock: Clock) -> None:
    report = probe(make_task(loss=clock.loss), seconds=60.0)
    assert report.stopped is None, "as many steps were planned as the time holds"
    assert 0.6 * 60.0 < clock.now < 60.0
    assert 0.8 < report.budget_spent / report.budget_examples < 1.0
    long = next(part for part in report.spending if part.part == "long runs")
    in_examples = report.budget_examples / (0.8 * 60.0)
    assert long.of_budget == pytest.approx(long.seconds * in_examples, rel=0.1)


def test_steps_count_against_a_budget_of_examples() -> None:
    free, dear = (probe(make_task(), examples=60_000, per_step=per_step, seed=3) for per_step in (0.0, 40.0))
    assert dear.stopped is None
    assert dear.budget_spent <= 60_000
    # The time of the readings of noise, and of evaluations, does not depend on steps.
    unaffected = {"noise scales"}
    for part in dear.spending:
        assert (part.of_budget > part.examples) is (part.part not in unaffected), part.part
    assert dear.budget_spent == pytest.approx(dear.examples_spent + 40.0 * dear.steps_spent, rel=0.1)
    assert dear.steps_spent < 0.5 * free.steps_spent
    assert free.budget_spent == free.examples_spent


def test_a_given_rate_that_is_wrong_is_said_to_be(report: ProbeReport) -> None:
    begun = probe(make_task(), examples=BUDGET, seed=3, learning_rate=1e3)
    (note,) = begun.notes
    assert note.startswith("The learning rate that was given, 1e+03 at batch size 32, is far from what does best")
    assert begun.reference is not None


def test_steps_of_a_time_are_counted_by_it() -> None:
    with pytest.raises(ValueError, match="per_step needs examples"):
        probe(make_task(), seconds=1.0, per_step=64.0)
    for wrong in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="per_step must be"):
            probe(make_task(), examples=BUDGET, per_step=wrong)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ((0, 0.1), "prior's batch size must be at least 1"),
        ((8, -0.1), "prior's learning rate must be positive"),
        ((8, math.nan), "prior's learning rate must be positive"),
    ],
)
def test_a_prior_that_is_no_setting(prior: tuple[int, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task(prior=prior)
    with pytest.raises(TypeError, match="prior must be a pair"):
        make_task(prior=0.1)


@pytest.mark.parametrize("times", [1.0, 0.01, 100.0])
def test_a_prior_is_where_the_search_begins_and_costs_little_where_it_is_wrong(
    report: ProbeReport, times: float
) -> None:
    size = max(run.batch_size for run in report.runs)
    found = {run.learning_rate for run in report.runs if run.batch_size == size}
    good = sorted(found)[len(found) // 2]
    begun = probe(make_task(prior=(4 * size, 4**0.75 * good * times)), examples=BUDGET, seed=3)
    assert begun.stopped is None
    assert begun.examples_spent <= BUDGET
    tried = {run.learning_rate for run in begun.runs if run.batch_size == size}
    if times == 1.0:
        assert not begun.notes
        assert any(rate == pytest.approx(good) for rate in tried)
        assert "learning-rate range" not in {part.part for part in begun.spending}
    else:
        (note,) = begun.notes
        assert note.startswith(f"The task's prior, {4**0.75 * good * times:.3g} at batch size {4 * size}, which is")
        assert f"which is {good * times:.3g} at {size}, is far from what does best" in note
    lowest, before = (min(run.last_loss for run in each.runs if run.outcome == "finished") for each in (begun, report))
    assert lowest < 1.2 * before, "in the end it finds rates as good"


def test_a_run_that_begins_when_the_time_is_up_is_left_out(clock: Clock) -> None:
    def wait(part: str, done: float) -> None:
        if part == "learning-rate search":
            clock.now += 5.0

    report = probe(make_task(loss=clock.loss), seconds=5.0, progress=wait)
    assert report.stopped == "the time was up"
    assert report.runs
    assert all(math.isfinite(branch.last_loss) for branch in report.runs)


def test_a_given_learning_rate_is_not_searched(report: ProbeReport) -> None:
    given = probe(make_task(), examples=BUDGET, learning_rate=0.5)
    assert "learning-rate range" not in {part.part for part in given.spending}
    assert any(branch.learning_rate == 0.5 for branch in given.runs)


def test_bounds_are_respected() -> None:
    report = probe(make_task(), examples=12_000, batch_sizes=(4, 16))
    sizes = {branch.batch_size for branch in report.runs}
    assert len(sizes) >= 2
    assert sizes <= set(range(4, 17))
    with pytest.raises(BudgetError, match="two batch sizes are needed"):
        probe(make_task(), examples=BUDGET, batch_sizes=(16, 16))


def test_bad_arguments() -> None:
    task = make_task()
    with pytest.raises(ValueError, match="a probe needs a budget"):
        probe(task)
    with pytest.raises(BudgetError, match=r"the budget must be at least \d+ examples"):
        probe(task, examples=500)
    with pytest.raises(ValueError, match="seconds must be positive"):
        probe(task, seconds=-1.0)
    with pytest.raises(TypeError, match="task must be a TrainingTask"):
        probe("task", examples=BUDGET)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="largest batch size must be at least 8, got 4"):
        probe(task, examples=BUDGET, batch_sizes=(8, 4))
    stream = make_task(data=iter([]))
    with pytest.raises(TaskError, match="stream"):
        probe(stream, examples=BUDGET)
    frozen = make_task(model=lambda: nn.Linear(10, 3).requires_grad_(False))
    with pytest.raises(TaskError, match="trainable parameter"):
        probe(frozen, examples=BUDGET)
    summed = make_task(
        loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]).mul(len(batch[1]))
    )
    with pytest.raises(TaskError, match="one number must be the mean over the batch's examples"):
        probe(summed, examples=BUDGET)

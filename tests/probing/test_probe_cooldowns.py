"""The cooldowns of a whole probe: which there are, how they end, after a kill."""

from __future__ import annotations

import math
import shutil
import statistics
from pathlib import Path

import pytest
import torch
from probing.test_probe import BUDGET, SIZES, make_task, timeless
from torch import nn

from batchopt.evidence import ProbeReport
from batchopt.learning_rate_schedule import LearningRateSchedule
from batchopt.probing.probe import probe


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("probe") / "journal"


@pytest.fixture(scope="module")
def report(journal: Path) -> ProbeReport:
    return probe(make_task(), examples=BUDGET, seed=3, journal=journal)


def test_each_batch_size_has_its_cooldowns(report: ProbeReport) -> None:
    """Off two or three short runs at neighbouring rates, the best of which goes on, and two off the long run."""
    for size in SIZES:
        stable = {b.learning_rate: b for b in report.runs if b.batch_size == size and b.is_constant}
        cooled = [b for b in report.runs if b.batch_size == size and not b.is_constant]
        assert {b.learning_rate for b in cooled} <= set(stable)
        assert all(b.learning_rate_schedule is not None and b.outcome == "finished" for b in cooled)
        best = max(stable.values(), key=lambda b: b.examples)
        stretches = [b.falls for b in cooled if b.falls is not None]
        assert 4 <= len(stretches) == len(cooled) <= 5
        long_begin, short_begin = max(begin for begin, _ in stretches), min(begin for begin, _ in stretches)
        at_long = [b for b in cooled if b.falls and b.falls[0] == long_begin]
        at_short = [b for b in cooled if b.falls and b.falls[0] == short_begin]
        assert [b.learning_rate for b in at_long] == [best.learning_rate] * 2
        short, long = (end - begin for begin, end in sorted(b.falls for b in at_long if b.falls))
        assert short == pytest.approx(0.1 * long_begin, abs=size)
        assert 0.25 * long_begin < long <= 0.4 * long_begin + size
        assert best.learning_rate == min(at_short, key=lambda b: b.last_loss).learning_rate
        rates = sorted(b.learning_rate for b in at_short)
        assert rates == pytest.approx([rates[0] * 3.0**k for k in range(len(rates))])
        assert all(
            end - begin == pytest.approx(begin / 4, abs=size) for begin, end in stretches if begin == short_begin
        )


def test_every_cooldown_ends_with_an_evaluation_and_all_but_one_lower_than_they_began(report: ProbeReport) -> None:
    """The rates of the best runs are high here, so that a decay brings a lot. At the highest a loss jumps about so much
    that the processor's rounding decides how it stands where a cooldown begins."""
    cooled = [b for b in report.runs if b.falls is not None]
    fallen = []
    for run in cooled:
        assert run.falls is not None
        assert run.curve.examples == (run.falls[1],)
        assert run.training is not None
        assert len(run.training.examples) >= 4
        assert all(run.falls[0] <= n < run.falls[1] for n in run.training.examples)
        fallen.append(math.log(run.training.losses[0] / run.last_loss))
    assert sum(fall > 0.0 for fall in fallen) >= len(cooled) - 1
    assert statistics.median(fallen) > 0.5


def test_warm_up_is_in_every_schedule_and_no_short_of_it_cools_down() -> None:
    report = probe(make_task(warmup_examples=500), examples=BUDGET, seed=3, learning_rate=0.5)
    assert {b.learning_rate_schedule for b in report.runs if b.is_constant} == {
        LearningRateSchedule((0, 500), (0.0, 1.0))
    }
    cooled = [b.learning_rate_schedule for b in report.runs if not b.is_constant]
    assert cooled
    for schedule in cooled:
        assert schedule is not None
        assert schedule.multipliers == (0.0, 1.0, 1.0, 0.0)
        assert schedule.examples[1] == 500 < schedule.examples[2]


def test_runs_that_diverge_are_not_cooled_down() -> None:
    """The highest rates are too high for this loss."""
    report = probe(make_task(loss=_square), examples=BUDGET, seed=3, learning_rate=0.3)
    diverged = {(b.batch_size, b.learning_rate) for b in report.runs if b.outcome == "diverged" and b.is_constant}
    cooled = {(b.batch_size, b.learning_rate) for b in report.runs if not b.is_constant}
    assert diverged
    assert cooled
    assert not diverged & cooled


def _square(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """A loss that blows up where the rate is too high."""
    return (model(batch[0]) - nn.functional.one_hot(batch[1], 3)).square().sum(dim=1)


def test_a_killed_cooldown_is_run_again_from_its_snapshot(report: ProbeReport, journal: Path, tmp_path: Path) -> None:
    """As after a kill in the middle of the cooldowns, with half a file left over."""
    killed = tmp_path / "journal"
    shutil.copytree(journal, killed)
    names = sorted(file.name for file in killed.glob("*cooldown*.json"))
    assert len(names) == 10
    for name in names[::2]:
        (killed / name).unlink()
    (killed / f".{names[0]}.abc.tmp").write_text("{")
    kept = {file.name: file.read_bytes() for file in killed.glob("*.snapshot")}
    resumed = probe(make_task(), examples=BUDGET, seed=3, journal=killed)
    assert timeless(resumed) == timeless(report)
    assert {file.name: file.read_bytes() for file in killed.glob("*.snapshot")} == kept
    assert not any("cooldown" in name for name in kept)

"""What a forecast is fitted to: the runs of a probe, runs that were there before, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from batchopt.errors import EvidenceError
from batchopt.evidence import Branch, ProbeReport
from batchopt.forecasting.doubts import doubts_of_past_runs, doubts_of_report, doubts_of_runs
from batchopt.forecasting.law import LawPosterior
from batchopt.forecasting.law_fit import fit_law
from batchopt.forecasting.misfit import NoiseReading
from batchopt.forecasting.past_runs import check_past_runs, parted
from batchopt.forecasting.posterior import UNTRIED, LossPosterior
from batchopt.forecasting.probe_readings import noise_readings


@dataclass(frozen=True, slots=True)
class Gathered:
    """Evidence of one task.

    Attributes:
        runs: stable ones, and what comes after their rates fall.
        noise: noise scales that were resolved.
        initial_loss: at initialisation; None where the runs tell it.
        adaptive: whether the optimizer scales coordinates as Adam does; None if it is not known.
        delay: steps that momentum lags behind.
        probed: whether a probe made some of the runs.
        doubts: what the runs do not show.
    """

    runs: tuple[Branch, ...]
    noise: tuple[NoiseReading, ...]
    initial_loss: float | None
    adaptive: bool | None
    delay: float
    probed: bool
    doubts: tuple[str, ...]


def gather(
    report: ProbeReport | None, past: Sequence[Branch], *, initial_loss: float | None, adaptive: bool | None
) -> Gathered:
    """Evidence from a probe's report, from runs that were there before, or from both.

    Raises:
        EvidenceError: the runs do not belong together, or too few of them say anything.
        ValueError: there are neither.
    """
    if report is None and not past:
        raise ValueError("a forecast needs runs: give the report of a probe, or runs=[...], got neither")
    doubts, delay = [], 0.0
    if past:
        check_past_runs(past, initial_loss=initial_loss, probed=None if report is None else report.initial_loss)
    if report is not None:
        initial_loss = report.initial_loss if initial_loss is None else initial_loss
        adaptive = report.provenance.adaptive if adaptive is None else adaptive
        delay = report.provenance.delay
        doubts += doubts_of_report(report)
    if past:
        doubts += doubts_of_past_runs(past, adaptive=adaptive)
    runs = [*(() if report is None else report.runs), *parted(past)]
    return Gathered(
        runs=tuple(runs),
        noise=() if report is None else tuple(noise_readings(report)),
        initial_loss=initial_loss,
        adaptive=adaptive,
        delay=delay,
        probed=report is not None,
        doubts=(*doubts, *doubts_of_runs(runs)),
    )


def with_edge_of_stability(law: LossPosterior, known: Gathered) -> LossPosterior:
    """A law that does not count on rates above those that were run, where nobody looked how high a rate is stable.

    A probe raises the rate until runs fail. Runs that were there before may have stopped short of that: then stability
    ends, in each draw at another rate, between the highest that ran well and the highest that is ever planned, at all
    batch sizes that ran. On the digits, without this, a plan took a rate with which two of three runs died.
    """
    if known.probed or law.unstable:
        return law
    return replace(law, unstable=((law.batch_sizes[1], law.highest_rate, UNTRIED * law.highest_rate),))


def constant_law(known: Gathered, *, seed: int) -> LawPosterior | None:
    """The law of runs that keep their rate; None where none was probed and no two of the others did.

    Raises:
        EvidenceError: a probe left fewer than two usable loss curves.
    """
    runs = [run for run in known.runs if run.is_constant]
    if not known.probed and all(run.outcome == "diverged" for run in runs):
        return None
    try:
        return fit_law(
            runs,
            noise=known.noise,
            initial_loss=known.initial_loss,
            adaptive=known.adaptive,
            delay=known.delay,
            seed=seed,
        )
    except EvidenceError:
        if known.probed:
            raise
        return None

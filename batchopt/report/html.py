"""The report: everything that one flow found, on one HTML page that needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from batchopt._codec import write_text
from batchopt.evidence import LossCurve, ProbeReport
from batchopt.planning.plan import Plan
from batchopt.report import sections
from batchopt.report.comparison import Comparison
from batchopt.report.markup import Section, page, paragraph
from batchopt.schedules.schedule import Schedule

if TYPE_CHECKING:
    import optuna

    from batchopt.forecasting.forecast import Forecast

TITLE = "Batch size and learning rate"


def write_report(
    path: str | os.PathLike[str],
    *,
    report: ProbeReport | None = None,
    forecast: Forecast | None = None,
    plan: Plan | None = None,
    schedule: Schedule | None = None,
    study: optuna.Study | None = None,
    training: Iterable[Comparison] | None = None,
    measured: LossCurve | None = None,
) -> None:
    """Write one self-contained page, whole or not at all; what is not given is left out.

    Args:
        path: the HTML file; folders that it needs are made.
        report: what the probe measured.
        forecast: what follows for the rest of the training.
        plan: what to run.
        schedule: the batch size over the run; the plan's own if None.
        study: an Optuna study over batch size and learning rate.
        training: predictions beside what a training took.
        measured: losses of that training, drawn beside those that the plan predicts.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(
        path,
        render_report(
            report=report,
            forecast=forecast,
            plan=plan,
            schedule=schedule,
            study=study,
            training=training,
            measured=measured,
        ),
    )


def render_report(
    *,
    report: ProbeReport | None = None,
    forecast: Forecast | None = None,
    plan: Plan | None = None,
    schedule: Schedule | None = None,
    study: optuna.Study | None = None,
    training: Iterable[Comparison] | None = None,
    measured: LossCurve | None = None,
) -> str:
    """The page that `write_report` writes."""
    if schedule is None and plan is not None:
        schedule = plan.schedule
    rows = tuple(training or ())
    # What to do comes first, then what it rests on.
    parts: list[Section | None] = [
        sections.plan(plan) if plan else None,
        sections.schedule(schedule, plan) if schedule else None,
        sections.trust(report, forecast),
        sections.training(rows, plan, measured) if rows or (plan is not None and measured is not None) else None,
        sections.forecast(forecast) if forecast else None,
        sections.probe(report, forecast) if report else None,
        sections.study(study, plan) if study is not None else None,
    ]
    shown = [part for part in parts if part is not None]
    return page(TITLE, _intro(report, plan) if shown else paragraph("Nothing was given to report on."), shown)


def _intro(report: ProbeReport | None, plan: Plan | None) -> str:
    text = ""
    if plan is not None:
        text += paragraph(sections.plan_in_a_sentence(plan))
    if report is not None:
        text += paragraph(sections.provenance_in_a_sentence(report), soft=True)
    return text

"""A study's figures and findings, where optuna-dashboard shows them: in the study itself."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from batchopt.errors import MissingPackageError
from batchopt.planning.plan import Plan
from batchopt.report.sections import plan_in_a_sentence
from batchopt.visualization.schedule import plot_schedule
from batchopt.visualization.study import draw_study
from batchopt.visualization.study_history import draw_history
from batchopt.visualization.tradeoff import plot_plan_cost
from batchopt.visualization.trials import study_data

if TYPE_CHECKING:
    import optuna
    import plotly.graph_objects as go

HEADING = "## What batchopt found"
"""Begins batchopt's part of the note, which goes on to its end."""


def save_to_dashboard(study: optuna.Study, plan: Plan | None = None, *, last: int | None = 5) -> None:
    """Save figures and a note in a study, which optuna-dashboard then shows.

    The figures are the trials, how the study improved, and the plan's cost and schedule. The note tells the plan, the
    best trial and why trials were proposed and ended. What is saved again takes the place of what was saved before;
    what else a person wrote into the note stays, above batchopt's heading.

    Args:
        study: that a `TradeoffSampler`, a `TradeoffPruner` or `check` has worked on.
        plan: what the search began with.
        last: trials whose reasons are told; None for all.

    Raises:
        MissingPackageError: optuna-dashboard is not installed.
        EvidenceError: the study holds no settings of batchopt, or contradicts them; nothing is saved.
    """
    try:
        from optuna_dashboard import get_note, save_note, save_plotly_graph_object
    except ImportError as error:
        raise MissingPackageError(
            "figures and notes for optuna-dashboard need its package: pip install '.[dashboard]' in a clone of batchopt"
        ) from error
    figures, found = _figures(study, plan), _findings(study, plan, last)
    for name, figure in figures.items():
        save_plotly_graph_object(study, figure, graph_object_id=f"batchopt:{name}")
    written_by_others = get_note(study).partition(HEADING)[0].rstrip()
    save_note(study, "\n\n".join([written_by_others, found] if written_by_others else [found]))


def _figures(study: optuna.Study, plan: Plan | None) -> dict[str, go.Figure]:
    data = study_data(study)
    figures = {"study": draw_study(data, plan)}
    if data.objectives == 1:
        figures["study-history"] = draw_history(data)
    if plan is not None:
        figures |= {"plan-cost": plot_plan_cost(plan), "schedule": plot_schedule(plan.schedule)}
    return figures


def _findings(study: optuna.Study, plan: Plan | None, last: int | None) -> str:
    """What `explain` tells, as Markdown in which nothing from the study's storage is markup."""
    from batchopt.search.summary import explain

    begun = [] if plan is None else [f"The plan. {plan_in_a_sentence(plan)}"]
    lines = [*begun, *explain(study, last)]
    return "\n".join([HEADING, "", *(f"- {_escaped(line)}" for line in lines), ""])


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>&$|~])", r"\\\1", " ".join(text.split()))

"""The sections of the report: each takes records and returns its text, tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from batchopt.errors import EvidenceError
from batchopt.evidence import LossCurve, ProbeReport
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.planning.plan import Alternative, Plan
from batchopt.report.comparison import Comparison
from batchopt.report.markup import Section, bullets, doubts, figure, paragraph, side_by_side, table
from batchopt.schedules.schedule import Schedule
from batchopt.step_cost import StepCost
from batchopt.uncertainty import Estimate
from batchopt.visualization.forecast import draw_forecast, forecast_data
from batchopt.visualization.loss_curves import plot_loss_curves
from batchopt.visualization.noise_scale import plot_noise_scale
from batchopt.visualization.schedule import is_flat, plot_schedule, schedule_data
from batchopt.visualization.spending import plot_spending, spending_data
from batchopt.visualization.study import draw_study
from batchopt.visualization.study_history import draw_history
from batchopt.visualization.tradeoff import plot_plan_cost, plot_tradeoff
from batchopt.visualization.training import plot_training
from batchopt.visualization.trials import StudyData, study_data
from batchopt.visualization.wording import count, interval, number, seconds

if TYPE_CHECKING:
    import optuna

    from batchopt.forecasting.forecast import Forecast

_MOST_ALTERNATIVES = 12


def probe(report: ProbeReport, forecast: Forecast | None) -> Section:
    """What was measured, and what that took."""
    body = ""
    if report.stopped is not None:
        body += doubts([f"The probe stopped before its plan was done: {report.stopped}."])
    body += doubts(report.notes) if report.notes else ""
    body += side_by_side(_spending_table(report), _settings_table(report))
    if report.decisions:
        body += f"<h3>What was decided on the way</h3>\n{bullets(report.decisions)}"
    body += _noise_table(report)
    if report.noise_scales:
        body += figure(plot_noise_scale(report, forecast), name="noise-scale")
    if report.runs:
        body += figure(plot_loss_curves(report, forecast), name="loss-curves")
    if report.spending:
        body += figure(plot_spending(report), name="spending")
    return Section("Probe", body)


def forecast(forecast: Forecast) -> Section:
    """Critical batch size over the loss, as numbers and as a figure."""
    data = forecast_data(forecast)
    local = {reading.x: reading for reading in data.local}
    rows = [
        (
            number(reading.x) + ("" if reading.x >= data.lowest_observed else " (extrapolated)"),
            interval(reading.estimate),
            interval(local[reading.x].estimate) if reading.x in local else "not reached",
        )
        for reading in data.critical
    ]
    body = paragraph(
        f"From loss {number(forecast.initial_loss)} at initialisation; losses were seen down to "
        f"{number(data.lowest_observed)}. Intervals hold 90 %."
    )
    body += table(
        "Critical batch size (examples per step)", ("loss", "from the start to it", "of the training there"), rows
    )
    body += figure(draw_forecast(data), name="forecast")
    return Section("Forecast", body)


def trust(report: ProbeReport | None, forecast: Forecast | None) -> Section | None:
    """When not to trust it: the forecast's doubts, readings that are unresolved, and what always holds."""
    found = [] if forecast is None else list(forecast.doubts)
    for scale in report.noise_scales if report is not None else ():
        if not scale.resolved:
            where = "" if scale.at is None else f" at loss {number(scale.at.loss)}"
            found.append(
                f"The {scale.kind} noise scale{where} is {interval(scale.batch_size)}, "
                f"from {count(scale.examples)} examples."
            )
    always = [
        "A plan's intervals are of a single run by its own schedule: another schedule takes other steps.",
        "Losses below the lowest observed one are extrapolated, however narrow their intervals.",
        "Another model, data set, optimizer or augmentation is another problem, and needs its own probe.",
    ]
    if not found and forecast is None:
        return None
    body = paragraph("Of this run in particular:") + doubts(found) if found else paragraph("No reading is in doubt.")
    if forecast is not None:
        body += paragraph("Always:") + bullets(always)
    return Section("When not to trust it", body)


def plan(plan: Plan) -> Section:
    """What to do, what it costs and how sure that is; then why, and the alternatives."""
    best = plan.best
    todo = [
        ("goal", plan.goal_in_words),
        ("batch size", f"{count(plan.batch_size)} examples per step"),
        ("peak learning rate", number(plan.learning_rate)),
        ("learning-rate schedule", f"{plan.learning_rate_schedule}, over {count(plan.horizon)} examples"),
    ]
    costs = [
        ("steps", interval(best.steps)),
        ("examples", interval(best.examples)),
        *_where(best.seconds is not None and plan.price.unit != "seconds", ("seconds", _optional(best.seconds))),
        *_where(_has_price(plan), (f"cost ({plan.price.unit})", interval(best.cost))),
        *_where(
            len(plan.schedule.segments) > 1,
            (f"cost of the schedule, whose batch size changes ({plan.price.unit})", interval(plan.schedule_cost)),
        ),
        ("loss at the end of the schedule", interval(best.loss)),
        *((f"{name} at the end", interval(metric)) for name, metric in plan.metrics.items()),
        *_where(plan.critical_batch_size is not None, ("critical batch size", _optional(plan.critical_batch_size))),
    ]
    body = side_by_side(table("What to do", (), todo), table("What it costs", (), costs))
    body += f"<h3>How sure</h3>\n{_sureness(plan)}"
    body += f"<h3>Why</h3>\n{bullets(plan.reasons[len(plan.doubts) :])}"
    body += figure(plot_plan_cost(plan), name="plan-cost")
    body += figure(plot_tradeoff(plan), name="tradeoff")
    body += _alternatives_table(plan)
    return Section("Plan", body)


def _sureness(plan: Plan) -> str:
    """Doubts, or that there are none, and what the intervals mean."""
    body = doubts(plan.doubts) if plan.doubts else paragraph("Nothing in the evidence speaks against the plan.")
    return body + paragraph("Intervals hold nine of ten single runs by this plan.", soft=True)


def schedule(schedule: Schedule, plan: Plan | None) -> Section:
    """The batch size over the run."""
    pieces = schedule_data(schedule)
    rows = [
        (
            f"{count(piece.start)} to {count(piece.end)}",
            count(piece.batch_size),
            f"{number(piece.multiplier)} times the loop's own"
            if piece.learning_rate is None
            else number(piece.learning_rate),
        )
        for piece in pieces
    ]
    until = " until the loss is reached" if plan is not None and isinstance(plan.goal, ReachLoss) else ""
    cost = (
        f", predicted to cost {interval(plan.schedule_cost)} {plan.price.unit}{until}"
        if plan is not None and plan.schedule == schedule and (_has_price(plan) or isinstance(plan.goal, ReachLoss))
        else ""
    )
    body = paragraph(f"{count(schedule.examples)} examples in {count(schedule.steps)} steps{cost}.")
    body += table("", ("examples seen", "batch size", "learning rate"), rows)
    body += "" if is_flat(schedule) else figure(plot_schedule(schedule), name="schedule")
    return Section("Schedule", body)


def study(study: optuna.Study, plan: Plan | None) -> Section:
    """What the study proposed, pruned and found."""
    from batchopt.search.summary import summarise

    try:
        data = study_data(study)
    except EvidenceError as error:
        return Section("Study", paragraph(f"The study cannot be shown: {error}"))
    body = side_by_side(_fates_table(data, summarise(study).saved), _best_table(data))
    body += figure(draw_study(data, plan), name="study")
    if data.objectives == 1:
        body += figure(draw_history(data), name="study-history")
    return Section("Study", body)


def training(rows: Sequence[Comparison], plan: Plan | None, measured: LossCurve | None) -> Section:
    """Predictions beside what a training took, and the losses of both along the run."""
    cells = [
        (
            row.name,
            interval(row.predicted),
            number(row.measured),
            f"{row.error_ratio - 1.0:+.0%}",
            "inside" if row.inside else "outside",
        )
        for row in rows
    ]
    body = table("", ("", "predicted", "measured", "error", "90 % interval"), cells) if cells else ""
    if plan is not None and measured is not None:
        body += figure(plot_training(plan, measured), name="training")
    return Section("Predicted beside measured", body)


def plan_in_a_sentence(plan: Plan) -> str:
    """What to run, what it costs, and how sure that is."""
    doubt = "" if plan.cost.resolved else " This is a best guess: the evidence does not resolve its cost."
    number_of = len(plan.doubts)
    if plan.cost.resolved and number_of:
        doubt = f" {number_of} thing{'s speak' if number_of > 1 else ' speaks'} against trusting it; see below."
    time = "" if plan.seconds is None else f", {interval(plan.seconds)} seconds"
    return (
        f"For {plan.goal_in_words}: train with batch size {count(plan.batch_size)} at a peak learning rate of "
        f"{number(plan.learning_rate)} ({plan.learning_rate_schedule}), predicted to take {interval(plan.steps)} "
        f"steps{time}.{doubt}"
    )


def provenance_in_a_sentence(report: ProbeReport) -> str:
    """Where the probe ran."""
    made = report.provenance
    versions = ", ".join(f"{name} {version}" for name, version in sorted(made.versions.items()))
    population = "a stream" if made.population is None else f"{count(made.population)} examples"
    text = f"Probed on {made.device} with seed {made.seed}: {count(made.parameters)} parameters, {population}"
    return f"{text}; {versions}." if versions else f"{text}."


def _spending_table(report: ProbeReport) -> str:
    data = spending_data(report)
    rows = [
        (share.part, number(share.of_budget), f"{share.share:.0%}", count(share.steps), seconds(share.seconds))
        for share in data.shares
    ]
    total = f"{data.spent / data.budget:.0%} of {number(data.budget)}"
    rows.append(
        ("all, of the budget", number(data.spent), total, count(report.steps_spent), seconds(report.seconds_spent))
    )
    return table(
        "What the probe spent", ("part", "of the budget", "share", "steps", "time"), rows, chosen=len(rows) - 1
    )


def _settings_table(report: ProbeReport) -> str:
    cooldowns = sum(not run.is_constant for run in report.runs)
    rows = [("runs", count(len(report.runs) - cooldowns)), ("cooldowns", count(cooldowns))]
    if report.reference is not None:
        run = report.reference
        rows.append(("reference run", f"batch size {count(run.batch_size)}, learning rate {number(run.learning_rate)}"))
    if report.step_cost is not None:
        rows.append(("cost of a step", _step_cost_in_words(report.step_cost)))
        if report.step_cost.largest_batch_size is not None:
            rows.append(("largest batch", count(report.step_cost.largest_batch_size)))
    return table("What it ran", (), rows)


def _noise_table(report: ProbeReport) -> str:
    rows = [
        (
            "" if scale.at is None else number(scale.at.loss),
            "" if scale.at is None else count(scale.at.examples),
            scale.kind,
            interval(scale.batch_size),
            count(scale.examples),
            scale.stopped,
        )
        for scale in report.noise_scales
    ]
    header = ("loss", "examples seen", "kind", "noise scale (90 % interval)", "examples used", "ended by")
    return table("Gradient noise scale (examples)", header, rows)


def _alternatives_table(plan: Plan) -> str:
    points = list(plan.alternatives)
    where = next((i for i, point in enumerate(points) if point.batch_size == plan.batch_size), 0)
    stride = max(1, -(-len(points) // _MOST_ALTERNATIVES))
    shown = [point for i, point in enumerate(points) if (i - where) % stride == 0]
    timed = any(point.seconds is not None for point in shown) and plan.price.unit != "seconds"
    header = (
        "batch size",
        "learning rate",
        "steps",
        "examples",
        *(("seconds",) if timed else ()),
        *((f"cost ({plan.price.unit})",) if _has_price(plan) else ()),
    )
    rows = [_alternative_row(point, timed, _has_price(plan)) for point in shown]
    if isinstance(plan.goal, LowestLoss):
        header = (*header, "loss")
        rows = [(*row, interval(point.loss)) for row, point in zip(rows, shown, strict=True)]
    chosen = next((i for i, point in enumerate(shown) if point.batch_size == plan.batch_size), None)
    return table("Alternatives", header, rows, chosen=chosen)


def _has_price(plan: Plan) -> bool:
    """Whether a plan's cost is another number than its steps and examples."""
    return plan.price.unit not in ("steps", "examples")


def _alternative_row(point: Alternative, timed: bool, priced: bool) -> tuple[str, ...]:
    return (
        count(point.batch_size),
        number(point.learning_rate),
        interval(point.steps),
        interval(point.examples),
        *((_optional(point.seconds),) if timed else ()),
        *((interval(point.cost),) if priced else ()),
    )


def _fates_table(data: StudyData, saved: float) -> str:
    rows = [
        ("proposed", count(len(data.trials))),
        ("pruned before compute", count(data.count("pruned before compute"))),
        ("pruned while running", count(data.count("pruned while running"))),
        ("completed", count(data.count("completed"))),
    ]
    for fate in ("running", "failed"):
        if data.count(fate):
            rows.append((fate, count(data.count(fate))))
    rows.append(("examples trained", number(data.examples)))
    if saved > 0:
        rows.append((f"predicted saving, {data.quantity}", number(saved)))
    return table("Trials", (), rows)


def _best_table(data: StudyData) -> str:
    best = [trial for trial in data.trials if trial.number in data.best]
    rows = [
        (
            count(trial.number),
            "" if trial.batch_size is None else number(trial.batch_size),
            "" if trial.learning_rate is None else number(trial.learning_rate),
            "" if trial.value is None else number(trial.value),
        )
        for trial in best
    ]
    caption = "Best trial" if data.objectives == 1 else "Pareto front"
    return table(caption, ("number", "batch size", "learning rate", data.quantity), rows)


def _step_cost_in_words(cost: StepCost) -> str:
    scatter = f" (give or take a factor of {cost.scatter:.2f})" if cost.scatter > 1.0 else ""
    return cost.in_words() + scatter


def _where(shown: bool, row: tuple[str, str]) -> list[tuple[str, str]]:
    return [row] if shown else []


def _optional(estimate: Estimate | None) -> str:
    return "" if estimate is None else interval(estimate)

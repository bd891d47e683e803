"""`batchopt plan`."""

from __future__ import annotations

import argparse
from pathlib import Path

from batchopt._wording import seconds as time_in_words
from batchopt.cli.arguments import add_batch_sizes, add_goal, count, goal_of
from batchopt.cli.console import PLANNING, Console
from batchopt.forecasting.forecast import Forecast
from batchopt.learning_rate_schedule import SHAPES
from batchopt.planning.goal import ReachLoss
from batchopt.planning.plan import Plan

SUMMARY = "Choose the batch size, peak learning rate, its decay and the horizon for a goal."
DETAILS = """\
  batchopt plan forecast.json --reach-loss 0.25                            least seconds to a loss
  batchopt plan forecast.json --reach-loss 0.25 --least balanced           steps and examples alike
  batchopt plan forecast.json --reach-loss 0.25 --per-step 64 --per-example 1
  batchopt plan forecast.json --reach-metric accuracy=0.93                 one of the task's metrics
  batchopt plan forecast.json --within 3600 --of seconds                   lowest loss in an hour
  batchopt plan forecast.json --reach-loss 0.25 --learning-rate-schedule cosine

--reach-loss means at the end of the decay, and the horizon is chosen with it; --within gives the horizon. Without
--learning-rate-schedule it takes the task's own, or else wsd. Two files are written: the
plan, with its predictions and reasons, and its schedule, which `batchopt train` follows.
"""

HIGH_REGRET = 0.5
"""A plan that by its own forecast costs so much more than the best is in doubt: probes as long as a run give 0.15."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("forecast", type=Path, help="file of `batchopt forecast`")
    add_goal(parser)
    add_batch_sizes(parser)
    parser.add_argument("--multiple-of", type=count, default=1, help="batch sizes are multiples of this")
    parser.add_argument(
        "--learning-rate-schedule",
        choices=("auto", *SHAPES),
        default="auto",
        help="how the learning rate decays (auto: the task's own, or wsd)",
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("plan.json"), help="file to write (plan.json)")
    parser.add_argument(
        "--schedule", type=Path, default=Path("schedule.json"), help="schedule to write (schedule.json)"
    )


def run(args: argparse.Namespace, console: Console) -> None:
    """Plan, and write the plan and its schedule."""
    forecast, goal = Forecast.load(args.forecast), goal_of(args)
    console.begin(PLANNING)
    plan = forecast.plan(
        goal,
        learning_rate_schedule=args.learning_rate_schedule,
        batch_sizes=args.batch_sizes,
        multiple_of=args.multiple_of,
    )
    plan.save(args.out)
    plan.schedule.save(args.schedule)
    console.title(f"Plan for {plan.goal_in_words}")
    show_plan(plan, console)
    console.say(f"\nwrote {args.out} and {args.schedule}; next: batchopt train TASK {args.schedule} --plan {args.out}")
    console.result({"out": str(args.out), "schedule": str(args.schedule), **plan_result(plan)})


def plan_result(plan: Plan) -> dict[str, object]:
    """A plan in one JSON object."""
    return {
        "goal": plan.goal_in_words,
        "batch_size": plan.batch_size,
        "learning_rate": plan.learning_rate,
        "learning_rate_schedule": plan.learning_rate_schedule,
        "horizon": plan.horizon,
        "loss": plan.loss,
        "metrics": plan.metrics,
        "steps": plan.steps,
        "examples": plan.examples,
        "seconds": plan.seconds,
        "cost": plan.cost,
        "schedule_cost": plan.schedule_cost,
        "reasons": plan.reasons,
    }


def show_plan(plan: Plan, console: Console) -> None:
    """What to do, what that costs, how sure it is, and why; then the trade-off around it."""
    console.say(
        f"batch size {plan.batch_size}, peak learning rate {plan.learning_rate:.3g} ({plan.learning_rate_schedule}), "
        f"over {plan.horizon:,} examples",
        "heading",
    )
    console.say()
    console.title("what it costs (90 % of runs lie in the interval)")
    console.table(("", ""), _costs(plan))
    console.say()
    console.title("how sure")
    if not plan.doubts:
        console.item("Nothing in the evidence speaks against the plan; what is not known is in the intervals.", "good")
    for doubt in plan.doubts:
        console.item(doubt, "doubt")
    reasons = list(plan.reasons[len(plan.doubts) :])
    if plan.expected_regret is not None:  # the last of the reasons says so
        console.item(reasons.pop(), "doubt" if plan.expected_regret > HIGH_REGRET else None)
    console.say()
    console.title("why")
    for reason in reasons:
        console.item(reason)
    console.say()
    console.title("what other batch sizes cost, each at its best learning rate")
    _show_alternatives(plan, console)


def _costs(plan: Plan) -> list[tuple[str, object]]:
    best, by_cost = plan.best, isinstance(plan.goal, ReachLoss)
    rows: list[tuple[str, object]] = [("steps", best.steps), ("examples", best.examples)]
    if best.seconds is not None:
        rows.append(("seconds", best.seconds))
    if by_cost and plan.price.unit not in ("steps", "examples", "seconds"):
        rows.append((f"cost ({plan.price.unit})", best.cost))
    rows.append(("loss at the end", best.loss))
    rows += [(f"{name} at the end", estimate) for name, estimate in plan.metrics.items()]
    if len(plan.schedule.segments) > 1:
        rows.append((f"the schedule, whose batch size rises ({plan.price.unit})", plan.schedule_cost))
    return rows


def _show_alternatives(plan: Plan, console: Console) -> None:
    doublings = {plan.batch_size * 2**k for k in range(9)} | {plan.batch_size // 2**k for k in range(9)}
    by_cost = isinstance(plan.goal, ReachLoss)
    wanted = f"cost ({plan.price.unit})" if by_cost else "loss at the end"
    near = [p for p in plan.alternatives if p.batch_size in doublings]
    # Where seconds are the price, that is their column.
    is_timed = plan.seconds is not None and not (by_cost and plan.price.unit == "seconds")
    console.table(
        ("", "batch", "peak rate", "steps", "examples", wanted, *(("time",) if is_timed else ())),
        [
            (
                "*" if p == plan.best else "",
                p.batch_size,
                p.learning_rate,
                p.steps,
                p.examples.value,
                p.cost.value if by_cost else p.loss,
                *((time_in_words(p.seconds.value),) if is_timed and p.seconds is not None else ()),
            )
            for p in near
        ],
        chosen=next((k for k, p in enumerate(near) if p == plan.best), None),
    )

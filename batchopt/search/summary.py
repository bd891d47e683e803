"""What a study did, counted, and told in lines."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState

from batchopt._checks import check_count
from batchopt._wording import number
from batchopt.errors import BatchoptError
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.search.advice import advice, none_completed
from batchopt.search.build import build_surrogate
from batchopt.search.judgement import CHANCE, DECISION_KEY, ENDED_KEY, PROPOSAL_KEY, Decision
from batchopt.search.left_out import left_out_lines
from batchopt.search.observations import check_objective, reading_of
from batchopt.search.price import GUESSED
from batchopt.search.prospects import IMPROVEMENT, NEAR_BEST
from batchopt.search.settings import Given, find
from batchopt.search.surrogate import Surrogate

if TYPE_CHECKING:
    import optuna

    from batchopt.search.fit import Thin
    from batchopt.search.settings import Known

LARGE_MISS = 5.0
"""A law that misses by more has been told of something else."""
MOST_SPARED = 10.0
"""Nobody would have gone on for longer than this many times what another setting takes."""
REASONS_SHOWN = 5
SUCCESS = (
    f"Success is a cost of at most {math.expm1(NEAR_BEST):.0%} above the least that any setting has, and at least "
    f"{IMPROVEMENT:.0%} below the best trial's."
)
SUCCESS_WITHIN = (
    f"Success is to end no worse than the best setting would with a budget {-math.expm1(-NEAR_BEST):.0%} smaller, and "
    f"to beat the best trial by as much as a budget {IMPROVEMENT:.0%} larger brings."
)
"""What a chance of success is of (`prospects`), for the two kinds of goals."""


@dataclass(frozen=True, slots=True)
class StudySummary:
    """Counts of a study's trials, and what pruning saved.

    Attributes:
        proposed: trials that were begun.
        pruned_before_compute: trials that `check`, or the pruner, ended before their first report.
        pruned_while_running: trials that `TradeoffPruner` ended later.
        pruned_otherwise: trials that the objective itself or another pruner ended, or that did not fit in memory.
        completed: trials with a value.
        failed: trials that raised.
        running: trials that are not finished; those that wait in the queue have not begun.
        saved: cost, in the goal's unit, that pruned trials were predicted still to need, where that is known; no more
            than ten times what each was compared with.
    """

    proposed: int
    pruned_before_compute: int
    pruned_while_running: int
    pruned_otherwise: int
    completed: int
    failed: int
    running: int
    saved: float


def decision_of(trial: FrozenTrial) -> Decision | None:
    """What was decided last about a trial by `check` or `TradeoffPruner`; None where neither said anything."""
    for key in (ENDED_KEY, DECISION_KEY):
        text = trial.user_attrs.get(key)
        with contextlib.suppress(BatchoptError):
            if isinstance(text, str):
                return Decision.from_json(text)
    return None


def summarise(study: optuna.Study) -> StudySummary:
    """Count a study's trials by what became of them."""
    trials = study.get_trials(deepcopy=False)
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    decisions = [decision for trial in pruned if (decision := decision_of(trial)) is not None and decision.rejected]
    return StudySummary(
        proposed=sum(trial.state != TrialState.WAITING for trial in trials),
        pruned_before_compute=sum(decision.decision == "pruned before compute" for decision in decisions),
        pruned_while_running=sum(decision.decision == "pruned while running" for decision in decisions),
        pruned_otherwise=len(pruned) - len(decisions),
        completed=sum(trial.state == TrialState.COMPLETE for trial in trials),
        failed=sum(trial.state == TrialState.FAIL for trial in trials),
        running=sum(trial.state == TrialState.RUNNING for trial in trials),
        saved=sum(map(_spared, decisions)),
    )


def _spared(decision: Decision) -> float:
    if decision.predicted is None or decision.limit is None or decision.unit in (GUESSED, "loss", ""):
        return 0.0
    return max(0.0, min(decision.predicted, MOST_SPARED * decision.limit) - decision.spent)


def explain(study: optuna.Study, last: int | None = REASONS_SHOWN) -> list[str]:
    """What the study reads, did and believes, in lines, and why its trials were proposed and ended.

    Args:
        study: that a `TradeoffSampler`, a `TradeoffPruner` or `check` has worked on.
        last: trials whose reasons are told; None for all.

    Raises:
        EvidenceError: the study holds no settings of batchopt, or contradicts them.
    """
    if last is not None:
        check_count("last", last)
    known, counts = find(study, Given()), summarise(study)
    decay = known.settings.decay
    lines = [f"{reading_of(known.settings)}.", *([] if decay is None else [decay.told]), _counts_line(counts)]
    if not counts.completed:
        lines += none_completed(study, known.settings)
    check_objective(study, known.settings)
    surrogate = build_surrogate(study, known)
    if isinstance(surrogate, Surrogate):
        lines += _front(study) if surrogate.two_objectives else []
        lines += _beliefs(study, surrogate, counts)
    else:
        lines.append(f"The law makes no predictions yet: {surrogate.reason}.")
    lines += [_teacher_line(known, surrogate), *left_out_lines(study, known.settings)]
    meaning = SUCCESS_WITHIN if isinstance(known.settings.goal, LowestLoss) else SUCCESS
    return [*lines, *advice(study, known.settings, surrogate), *_reasons(study, last, meaning)]


def _counts_line(counts: StudySummary) -> str:
    ends = (
        (counts.pruned_before_compute, "pruned before compute"),
        (counts.pruned_while_running, "pruned while running"),
        (counts.pruned_otherwise, "ended by the objective or another pruner"),
        (counts.failed, "failed"),
        (counts.running, "not finished"),
    )
    told = [f"{counts.completed} completed", *(f"{count} {end}" for count, end in ends if count)]
    return f"{counts.proposed} trials: {', '.join(told)}."


def _teacher_line(known: Known, surrogate: Surrogate | Thin) -> str:
    if known.forecast is None:
        return "No probe: trials alone taught the law."
    if isinstance(surrogate, Surrogate) and not surrogate.informed:
        return "The forecast of a probe does not say how the goal is reached: trials alone taught the law."
    return "The forecast of a probe was the starting point."


def _beliefs(study: optuna.Study, surrogate: Surrogate, counts: StudySummary) -> list[str]:
    unit = surrogate.price.unit
    lines = [] if surrogate.two_objectives else _best(study, surrogate)
    if surrogate.incumbent is not None:
        lines.append(_misfit_line(surrogate.misfit))
    if counts.saved > 0 and counts.completed:
        lines.append(f"Pruning saved {number(counts.saved)} {unit}, by the law's predictions.")
    return lines


def _best(study: optuna.Study, surrogate: Surrogate) -> list[str]:
    lines, best, predicted = [], surrogate.incumbent, surrogate.best_predicted()
    price, is_cost = surrogate.price, isinstance(surrogate.goal, ReachLoss)
    unit, takes = f" {price.unit}" if is_cost else "", "takes" if price.unit == "seconds" else "costs"
    step = "" if price.unit in ("examples", "steps") else f" A step {takes} {price.in_words()}."
    if best is not None:
        value = study.get_trials(deepcopy=False)[best.number].values[0]
        lines.append(
            f"Best: trial {best.number}, batch size {best.batch_size}, learning rate {best.learning_rate:.3g}: "
            f"{surrogate.quantity}{value:.4g}{unit}."
        )
    if predicted is None:
        return [*lines, "The law does not say which settings reach the goal."]
    return [
        *lines,
        f"Predicted best: batch size {predicted[0]:.0f}, learning rate {predicted[1]:.3g}: "
        f"{surrogate.score_in_words(predicted[2])}{unit}.{step}",
    ]


def _beats(one: FrozenTrial, other: FrozenTrial) -> bool:
    return one.values != other.values and all(a <= b for a, b in zip(one.values, other.values, strict=True))


def _front(study: optuna.Study) -> list[str]:
    """Of two objectives, the trials that no other beats in both."""
    done = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if all(0 < value < math.inf for value in trial.values) and len(trial.values) == 2
    ]
    front = [trial for trial in done if not any(_beats(other, trial) for other in done)]
    if not front:
        return []
    by_steps, by_examples = (min(front, key=lambda trial: trial.values[i]) for i in (0, 1))
    return [
        f"Trials that no other beats in both steps and examples: {len(front)}.",
        *(
            f"The fewest {what}: trial {trial.number}: {trial.values[0]:.4g} steps, {trial.values[1]:.4g} examples."
            for what, trial in (("steps", by_steps), ("examples", by_examples))
        ),
    ]


def _misfit_line(misfit: float) -> str:
    if math.isinf(misfit):
        return "The law does not explain the trials that completed, so nothing is pruned on it."
    line = f"The law's predictions of completed trials are off by a factor of {math.exp(misfit):.2f}."
    if misfit > math.log(LARGE_MISS):
        line += (
            " Look whether the objective returns what the first line says, and reports at examples seen, not at epochs."
        )
    return line


def _reasons(study: optuna.Study, last: int | None, meaning: str) -> list[str]:
    """Why trials were proposed, and why they ended: the lines of a trial together, in the order of the trials."""
    told = [lines for trial in study.get_trials(deepcopy=False) if (lines := _reasons_of(trial))]
    shown = told if last is None else told[-last:]
    cut = [
        f"Why trials were proposed and ended, the last {len(shown)} of {len(told)}; more by explain(study, last=None), "
        "or batchopt explain study.db --last N or --all:"
    ]
    lines = [line for lines in shown for line in lines]
    success = [meaning] if any(CHANCE in line for line in lines) else []
    return success + (cut if len(shown) < len(told) else []) + lines


def _reasons_of(trial: FrozenTrial) -> list[str]:
    proposal = trial.user_attrs.get(PROPOSAL_KEY)
    lines = [] if proposal is None else [f"Trial {trial.number}, proposed: {proposal}"]
    decision = decision_of(trial) if trial.state == TrialState.PRUNED else None
    if decision is not None and decision.rejected:
        lines.append(f"Trial {trial.number}, {decision.decision}: {decision.reason}")
    return lines

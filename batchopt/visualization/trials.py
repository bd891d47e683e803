"""The trials of a study as points: what was asked, what became of it, what it took."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from batchopt.errors import BatchoptError, EvidenceError
from batchopt.planning.goal import BestMetric, Goal, LowestLoss
from batchopt.step_cost import StepCost

if TYPE_CHECKING:
    import optuna

    from batchopt.search.parameters import Log2
    from batchopt.search.settings import StudySettings

Fate = Literal["completed", "pruned while running", "pruned before compute", "running", "failed"]

_STATES: Mapping[str, Fate] = {"COMPLETE": "completed", "RUNNING": "running", "FAIL": "failed"}
_BATCH_SIZE_NAMES = ("batch_size", "log2_batch_size", "bs", "log2_bs")
_LEARNING_RATE_NAMES = ("learning_rate", "lr")
_LARGEST_EXPONENT = 60


class TrialPoint(NamedTuple):
    """One trial.

    Attributes:
        number: Optuna's number of it.
        batch_size: examples per step; None where the trial has none (or ended before it was suggested).
        learning_rate: None likewise.
        fate: what became of it.
        value: its objective; None unless it was completed, or where the study has several objectives.
        examples: examples seen at its last report; 0 without a report.
        reason: why it was pruned, in words; empty where nobody said.
    """

    number: int
    batch_size: float | None
    learning_rate: float | None
    fate: Fate
    value: float | None
    examples: int
    reason: str

    @property
    def placed(self) -> bool:
        """Whether it has a place in the plane of batch size and learning rate."""
        return self.batch_size is not None and self.learning_rate is not None


class StudyData(NamedTuple):
    """What the figures of a study show.

    Attributes:
        trials: in the order in which they ended, those under way last; trials that wait are left out.
        best: numbers of the best trials: one, or the Pareto front of several objectives; empty before any is completed.
        minimised: whether the (first) objective is minimised.
        objectives: how many the study has.
        goal: what the objective means, where the study's settings say.
    """

    trials: tuple[TrialPoint, ...]
    best: tuple[int, ...]
    minimised: bool
    objectives: int
    goal: Goal | None = None

    def count(self, fate: Fate) -> int:
        """How many trials met a fate."""
        return sum(1 for trial in self.trials if trial.fate == fate)

    @property
    def quantity(self) -> str:
        """What a trial's value is, with its unit."""
        if self.goal is None:
            return "objective"
        if isinstance(self.goal, LowestLoss):
            return "loss"
        if isinstance(self.goal, BestMetric):
            return self.goal.metric
        least = self.goal.least
        unit = least.unit if isinstance(least, StepCost) else least if isinstance(least, str) else " and ".join(least)
        return f"cost ({unit})"

    @property
    def examples(self) -> int:
        """Examples that all trials together were trained on, by their last reports."""
        return sum(trial.examples for trial in self.trials)


def study_data(
    study: optuna.Study, *, batch_size: str | Log2 | None = None, learning_rate: str | None = None
) -> StudyData:
    """The trials of a study.

    Args:
        study: any Optuna study with a batch size and a learning rate among its parameters.
        batch_size: name of that parameter, `Log2("name")` where it holds the exponent; if None, what the study's
            settings say, or a usual name.
        learning_rate: name of that parameter, likewise.

    Raises:
        EvidenceError: the trials have parameters, but none of these names.
    """
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name != "WAITING"]
    trials.sort(key=_ended)
    settings = _settings(study)
    names = _names([name for trial in trials for name in trial.params], settings, batch_size, learning_rate)
    several = len(study.directions) > 1
    return StudyData(
        trials=tuple(_point(trial, names, several) for trial in trials),
        best=_best(study),
        minimised=study.directions[0].name == "MINIMIZE",
        objectives=len(study.directions),
        goal=None if settings is None else settings.asked,
    )


class _Names(NamedTuple):
    batch_size: str
    exponent: bool
    learning_rate: str


def _settings(study: optuna.Study) -> StudySettings | None:
    from batchopt.search.settings import Given, find

    try:
        return find(study, Given()).settings
    except BatchoptError:
        return None


def _names(
    asked: Sequence[str], settings: StudySettings | None, batch_size: str | Log2 | None, learning_rate: str | None
) -> _Names:
    from batchopt.search.parameters import Log2, holds_exponent

    if settings is not None:
        batch_size = batch_size or (Log2(settings.batch_size) if settings.exponent else settings.batch_size)
        learning_rate = learning_rate or settings.learning_rate
    batch_size = batch_size or _usual(asked, _BATCH_SIZE_NAMES, "batch size")
    name = batch_size.name if isinstance(batch_size, Log2) else batch_size
    return _Names(
        name, holds_exponent(batch_size), learning_rate or _usual(asked, _LEARNING_RATE_NAMES, "learning rate")
    )


def _point(trial: optuna.trial.FrozenTrial, names: _Names, several: bool) -> TrialPoint:
    value = trial.values[0] if trial.state.name == "COMPLETE" and not several and trial.values else None
    size = _setting(trial, names.batch_size)
    if size is not None and names.exponent:
        size = 2.0**size if size < _LARGEST_EXPONENT else None
    rate = _setting(trial, names.learning_rate)
    return TrialPoint(
        number=trial.number,
        batch_size=size if size is not None and size > 0 else None,
        learning_rate=rate if rate is not None and rate > 0 else None,
        fate=_fate(trial),
        value=value if value is not None and math.isfinite(value) else None,
        examples=max(0, trial.last_step or 0),
        reason=_reason(trial),
    )


def _fate(trial: optuna.trial.FrozenTrial) -> Fate:
    from batchopt.search.observations import MEMORY_CONSTRAINT

    if trial.state.name != "PRUNED":
        return _STATES[trial.state.name]
    ran_out_of_memory = getattr(trial, "constraints", {}).get(MEMORY_CONSTRAINT, 0.0) > 0
    return "pruned while running" if trial.intermediate_values or ran_out_of_memory else "pruned before compute"


def _setting(trial: optuna.trial.FrozenTrial, name: str) -> float | None:
    value = trial.params.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _reason(trial: optuna.trial.FrozenTrial) -> str:
    try:
        decision = json.loads(trial.user_attrs.get("batchopt:ended", trial.user_attrs.get("batchopt:decision", "{}")))
        return str(decision.get("reason", "")) if trial.state.name == "PRUNED" else ""
    except (TypeError, ValueError, AttributeError):
        return ""


def _usual(asked: Sequence[str], usual: tuple[str, ...], what: str) -> str:
    names = dict.fromkeys(asked)
    found = [name for name in usual if name in names]
    if names and not found:
        keyword = what.replace(" ", "_")
        raise EvidenceError(
            f"which parameter is the {what}? The study has {', '.join(names)}: pass {keyword}='its name'"
        )
    return found[0] if found else usual[0]


def _best(study: optuna.Study) -> tuple[int, ...]:
    if len(study.directions) > 1:
        return tuple(trial.number for trial in study.best_trials)
    try:
        return (study.best_trial.number,)
    except ValueError:
        return ()


def _ended(trial: optuna.trial.FrozenTrial) -> tuple[float, int]:
    ended = trial.datetime_complete
    return (math.inf if ended is None else ended.timestamp(), trial.number)

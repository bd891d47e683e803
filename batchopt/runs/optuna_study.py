"""The trials of a finished Optuna study as runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from batchopt.errors import EvidenceError
from batchopt.evidence import Branch
from batchopt.planning.goal import LowestLoss
from batchopt.runs.columns import as_column
from batchopt.runs.rows import Settings, runs_of_rows
from batchopt.search.decay import budget
from batchopt.search.observations import observe_one
from batchopt.search.settings import Given, StudySettings, find

if TYPE_CHECKING:
    from batchopt.learning_rate_schedule import LearningRateSchedule

STEP, VALUE = "step", "value"
"""By which `columns` names what `trial.report` was given."""


def runs_of_study(study: optuna.Study, *, columns: Mapping[str, str], settings: Settings) -> tuple[Branch, ...]:
    """The trials that reported losses.

    A study of `TradeoffSampler` holds how it is to be read. Of any other the parameters and user attributes are read
    like the columns of a table, with what was reported as `step` and `value`.

    Raises:
        EvidenceError: nothing says what the study's steps count, or a trial breaks a rule.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    own = None if columns or settings else _settings_of(study)
    if own is not None:
        found = [_as_run(trial, own, study.study_name) for trial in trials]
        return tuple(run for run in found if run is not None)
    if STEP not in columns.values():
        raise EvidenceError(
            "an Optuna study does not say what the step of trial.report counts: give "
            f"{as_column('examples', STEP)}, or {as_column('steps', STEP)}"
        )
    losses = {"evaluation_loss": VALUE} if VALUE not in columns.values() else {}
    return runs_of_rows(
        (row for trial in trials for row in _rows(trial)), columns={**losses, **columns}, settings=settings, only=""
    )


def load_only_study(storage: str) -> optuna.Study:
    """The one study in a storage.

    Raises:
        EvidenceError: it holds none or several, or cannot be opened.
    """
    try:
        names = optuna.get_all_study_names(storage)
    except Exception as error:
        raise EvidenceError(f"it cannot be opened as an Optuna storage: {error}") from None
    if len(names) != 1:
        held = f"it holds {', '.join(map(repr, names))}" if names else "it holds none"
        raise EvidenceError(f"one study is needed and {held}: give optuna.load_study(study_name=..., storage=...)")
    return optuna.load_study(study_name=names[0], storage=storage)


def _settings_of(study: optuna.Study) -> StudySettings | None:
    try:
        return find(study, Given()).settings
    except EvidenceError:
        return None


def _as_run(trial: FrozenTrial, settings: StudySettings, study_name: str) -> Branch | None:
    """A trial of a study of ours; None where it has no losses."""
    seen = observe_one(trial, settings, study_name)
    if seen is None or not (seen.curve.examples or seen.diverged):
        return None
    return Branch(
        batch_size=seen.batch_size,
        learning_rate=seen.learning_rate,
        curve=seen.curve,
        outcome="diverged" if seen.diverged else "finished" if trial.state == TrialState.COMPLETE else "stopped",
        seed=trial.number,
        learning_rate_schedule=_schedule_of(settings, seen.batch_size, seen.horizon),
    )


def _schedule_of(settings: StudySettings, batch_size: int, horizon: float | None) -> LearningRateSchedule | None:
    """How a trial's rate decayed; None where it did not.

    Raises:
        EvidenceError: the horizon is a budget of seconds, and a study does not hold what a step takes.
    """
    if settings.decay is None:
        return None
    if horizon is None and isinstance(settings.goal, LowestLoss):
        horizon = budget(settings.goal, settings.goal.price(), batch_size)
    return None if horizon is None else settings.decay.over(horizon)


def _rows(trial: FrozenTrial) -> Iterator[dict[str, Any]]:
    """What a trial reported, with its parameters and attributes at each of its points."""
    held = {name: value for name, value in trial.user_attrs.items() if isinstance(value, int | float | str)}
    own = {"run": f"trial {trial.number}", "stopped": trial.state == TrialState.PRUNED}
    for step, loss in trial.intermediate_values.items():
        yield {**held, **trial.params, **own, STEP: step, VALUE: loss}

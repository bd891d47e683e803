"""Which trials of a study do not count, and why."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState

from batchopt.errors import EvidenceError
from batchopt.search.misreading import misread
from batchopt.search.observations import AS_IT_IS, check_losses

if TYPE_CHECKING:
    import optuna

    from batchopt.search.settings import StudySettings

_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


def left_out_lines(study: optuna.Study, settings: StudySettings) -> list[str]:
    """How many trials are left out, in all or by their value, and why; how many others are probably misread."""
    out: dict[str, list[str]] = {}
    doubted = []
    for trial in study.get_trials(deepcopy=False, states=_ENDED):
        why = left_out(trial, settings)
        if why is not None:
            out.setdefault(why.partition(", got")[0], []).append(f"trial {trial.number}: {why}")
        elif (doubt := _doubt(trial, settings)) is not None:
            doubted.append(f"trial {trial.number}: {doubt}")
    lines = []
    if out:
        each = "; ".join(whys[0] if len(whys) == 1 else f"{len(whys)} like {whys[0]}" for whys in out.values())
        lines.append(f"{_counted(sum(map(len, out.values())))} left out: {each}.")
    if doubted:
        lines.append(f"{_counted(len(doubted))} probably misread, like {doubted[0]}.")
    return lines


def left_out(trial: FrozenTrial, settings: StudySettings) -> str | None:
    """Why a trial that ended, or its value, does not count; None where it does, or has ended before it trained."""
    trial = settings.in_losses(trial)
    try:
        setting = settings.read(trial.params)
        if setting is not None:
            check_losses(trial, settings.metric)
    except EvidenceError as error:
        return str(error)
    if setting is None and (trial.state == TrialState.COMPLETE or trial.last_step is not None):
        return f"it does not have both {settings.batch_size!r} and {settings.learning_rate!r}"
    wrong = [v for v in trial.values if not 0 < v < math.inf] if trial.state == TrialState.COMPLETE else []
    if not wrong:
        return None
    if settings.metric is not None and wrong[0] <= 0:
        return f"{settings.metric.rule(wrong[0])}; only reports count"
    return f"the value must be positive and finite, got {wrong[0]!r}: return it {AS_IT_IS}; only reports count"


def _doubt(trial: FrozenTrial, settings: StudySettings) -> str | None:
    setting = settings.read(trial.params)
    return None if setting is None else misread(settings.in_losses(trial), setting[0], settings.goal, settings.decay)


def _counted(count: int) -> str:
    return "1 trial is" if count == 1 else f"{count} trials are"

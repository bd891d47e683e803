"""The trials of a finished Optuna study as runs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from batchopt.errors import EvidenceError
from batchopt.evidence import Branch
from batchopt.planning.goal import LowestLoss
from batchopt.runs.columns import POINT, SETTINGS, as_column, is_named, listed
from batchopt.runs.rows import Settings, runs_of_rows
from batchopt.search.decay import budget
from batchopt.search.observations import observe_one
from batchopt.search.settings import Given, StudySettings, find

if TYPE_CHECKING:
    from batchopt.learning_rate_schedule import LearningRateSchedule

STEP, VALUE = "step", "value"
"""By which `columns` names what `trial.report` was given."""


def runs_of_study(
    study: optuna.Study | Iterable[FrozenTrial], *, columns: Mapping[str, str], settings: Settings
) -> tuple[Branch, ...]:
    """The trials that reported losses.

    A study of `TradeoffSampler` holds how it is to be read. Of any other the parameters and user attributes are
    settings of a run, and what was reported is its points, `step` and `value`. A trial that failed after a report that
    is not finite is a run that diverged; others that failed are left out.

    Args:
        study: a study; or trials that were picked from one, whose parameters may then differ as they do.
        columns: as of `read_runs`.
        settings: as of `read_runs`.

    Raises:
        EvidenceError: nothing says what the study's steps count, the study maximises, its trials differ in more than a
            run's settings, or a trial breaks a rule.
        TypeError: it is neither a study nor trials.
    """
    if not isinstance(study, optuna.Study | Iterable):
        raise TypeError(f"runs are read from a path, a URL, an Optuna study or its trials, got {study!r}")
    picked = None if isinstance(study, optuna.Study) else list(study)
    for trial in picked or ():
        if not isinstance(trial, FrozenTrial):
            raise TypeError(f"a list of runs must hold FrozenTrials of an Optuna study, got {type(trial).__name__}")
    if isinstance(study, optuna.Study) and StudyDirection.MAXIMIZE in study.directions:
        raise EvidenceError(
            "a study of losses must minimise, got direction maximize: report a loss, which is better the lower it is, "
            "or pick the trials that did: read_runs([trial for trial in study.trials if ...], columns=...)"
        )
    every = study.get_trials(deepcopy=False) if isinstance(study, optuna.Study) else picked or ()
    trials = [trial for trial in every if _is_run(trial)]
    own = _settings_of(study) if isinstance(study, optuna.Study) and not (columns or settings) else None
    if own is not None and own.metric is not None:
        raise EvidenceError(
            f"runs of a forecast are of losses, and the trials of this study report the {own.metric.goal.metric}: read "
            "runs whose losses were logged"
        )
    if own is not None:
        horizon = () if own.decay is None else (own.decay.horizon,)
        _check_alike(trials, (*own.names, *horizon))
        found = [_as_run(trial, own, str(study.study_name)) for trial in trials]  # type: ignore[union-attr]
        return tuple(run for run in found if run is not None)
    if STEP not in columns.values():
        raise EvidenceError(
            "an Optuna study does not say what the step of trial.report counts: give "
            f"{as_column('examples', STEP)}, or {as_column('steps', STEP)}"
        )
    if not any(trial.intermediate_values for trial in trials):
        raise EvidenceError(f"none of {len(every)} trials has reported a loss by trial.report and come to its end")
    if picked is None:
        _check_alike(trials, columns.values())
    losses = {"evaluation_loss": VALUE} if VALUE not in columns.values() else {}
    return runs_of_rows(
        (row for trial in trials for row in _rows(trial)), columns={**losses, **columns}, settings=settings, only=""
    )


def _is_run(trial: FrozenTrial) -> bool:
    if trial.state == TrialState.FAIL:
        return bool(trial.intermediate_values) and not math.isfinite(_last(trial))
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def _last(trial: FrozenTrial) -> float:
    return trial.intermediate_values[max(trial.intermediate_values)]


def _check_alike(trials: Sequence[FrozenTrial], known: Collection[str | int | None]) -> None:
    """Raise where trials differ in a parameter that is no setting of a run.

    Raises:
        EvidenceError: they do.
    """
    values: dict[str, set[str]] = {}
    for name in dict.fromkeys(name for trial in trials for name in trial.params):
        if name not in known and not is_named(name, *SETTINGS):
            values[name] = {repr(trial.params.get(name)) for trial in trials}
    others = [name for name, held in values.items() if len(held) > 1]
    if others:
        raise EvidenceError(
            f"runs of a forecast must differ in batch size, learning rate and its schedule only, and the trials differ "
            f"in {listed(others)}: say which are settings, by {as_column('batch_size', others[0])} for example, or "
            "pick trials that may be taken together: read_runs([trial for trial in study.trials if ...], columns=...)"
        )


def load_only_study(place: str) -> optuna.Study:
    """The one study in a storage, which is not written to where it is a file.

    Args:
        place: path of an SQLite file, or a storage's URL.

    Raises:
        EvidenceError: it holds none or several, or cannot be opened.
    """
    import sqlalchemy

    try:
        url = _read_only(sqlalchemy.make_url(place) if "://" in place else None, place)
        engine = sqlalchemy.create_engine(url)
        try:
            if not sqlalchemy.inspect(engine).has_table("studies"):
                raise EvidenceError("it cannot be opened as an Optuna storage: it holds no table of studies")
        finally:
            engine.dispose()
        storage = optuna.storages.RDBStorage(url)
        names = optuna.get_all_study_names(storage)
    except EvidenceError:
        raise
    except Exception as error:
        # What a driver says may hold the password.
        is_safe = "://" not in place or isinstance(error, ImportError)
        why = error if is_safe else f"{type(error).__name__}; give optuna.load_study(study_name=..., storage=...)"
        raise EvidenceError(f"it cannot be opened as an Optuna storage: {why}") from None
    if len(names) != 1:
        held = f"it holds {', '.join(map(repr, names))}" if names else "it holds none"
        raise EvidenceError(f"one study is needed and {held}: give optuna.load_study(study_name=..., storage=...)")
    return optuna.load_study(study_name=names[0], storage=storage)


def _read_only(url: Any, place: str) -> str:
    """The URL by which a storage is opened: of an SQLite file one that neither makes nor writes it."""
    import sqlalchemy

    if url is not None and url.get_backend_name() != "sqlite":
        return place
    file = place if url is None else url.database
    if not file or file.startswith(("file:", ":memory:")) or not Path(file).is_file():
        raise EvidenceError("there is no such file")
    name = f"file:{quote(str(Path(file).absolute()))}"
    # SQLAlchemy itself quotes what it takes apart again, and more of it in some versions than in others.
    opened = sqlalchemy.URL.create("sqlite", database=name, query={"mode": "ro", "uri": "true"})
    return opened.render_as_string(hide_password=False)


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
    """Parameters and attributes of a trial as settings, and what it reported as points."""
    held = {name: value for name, value in trial.user_attrs.items() if isinstance(value, int | float | str)}
    own = {"run": f"trial {trial.number}"}
    set_up = {name: value for name, value in (held | trial.params).items() if _is_setting(name)}
    failed, stopped = trial.state == TrialState.FAIL, trial.state == TrialState.PRUNED
    yield {**set_up, **own, "stopped": stopped, **({"diverged": True} if failed else {})}
    for step, loss in trial.intermediate_values.items():
        yield {**own, STEP: step, VALUE: loss}


def _is_setting(name: str) -> bool:
    return name not in (STEP, VALUE) and not is_named(name, "run", *(each for each in POINT if each != "learning_rate"))

"""The rows of a log as runs: which run each is of, what it holds, and whether that goes together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchopt.errors import EvidenceError
from batchopt.evidence import Branch
from batchopt.runs.columns import POINT, SETTINGS, as_column, check_names, listed, recognise
from batchopt.runs.logged import logged_run

Row = Mapping[str, Any]
Settings = Mapping[str, Any] | Mapping[str, Mapping[str, Any]]

NOTHING = (None, "")
PLACES, LOSSES = {"steps", "examples"}, {"loss", "training_loss", "evaluation_loss"}
OFF_STEPS, OFF_SHARE = 2.0, 0.05
"""Steps times the batch size may differ from the examples by so many steps, or by this share: last batches of an epoch
may be smaller."""


@dataclass(slots=True)
class _Log:
    """What was found of one run: values of its settings, and its points in the order of the log."""

    settings: dict[str, list[Any]] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)


def runs_of_rows(
    rows: Iterable[Row], *, columns: Mapping[str, str], settings: Settings, only: str
) -> tuple[Branch, ...]:
    """The runs that rows tell of, in the order of their first rows.

    Args:
        rows: each a point of a run: the log's names -> values, of which None and empty text are nothing.
        columns: our names -> the log's, where these are not known ones.
        settings: what the log does not hold: our names -> values, for all runs or by the name of the run.
        only: name of the one run of a log that names none.

    Raises:
        EvidenceError: a column is missing or unclear, or a value breaks its rule; with the run's name.
    """
    every = list(rows)
    found = recognise((name for row in every for name in row), columns)
    logs = _by_run(every, found, only)
    if not logs:
        names = dict.fromkeys(name for row in every for name in row)
        raise EvidenceError(
            f"no row holds a loss, and the columns are {listed(names)}: say which one does by {as_column('loss')}"
        )
    given = _by_name(settings, logs)
    runs = []
    for name, log in logs.items():
        try:
            runs.append(_run_of(log, given.get(name, {}), found))
        except (ValueError, TypeError, EvidenceError) as error:
            raise EvidenceError(f"run {name!r}: {error}") from None
    return tuple(runs)


def _by_run(rows: Iterable[Row], found: Mapping[str, str], only: str) -> dict[str, _Log]:
    """Settings and points of every run; what has neither is left out."""
    logs: dict[str, _Log] = {}
    for row in rows:
        held = {ours: row[theirs] for ours, theirs in found.items() if row.get(theirs) not in NOTHING}
        name = str(held.get("run", only))
        log = logs.setdefault(name if held.get("seed") is None else f"{name}, seed {held['seed']}", _Log())
        for ours in held.keys() & set(SETTINGS):
            log.settings.setdefault(ours, []).append(held[ours])
        if held.keys() & LOSSES or (held.keys() & PLACES and "learning_rate" in held):
            log.points.append({ours: held[ours] for ours in POINT if ours in held})
    return {name: log for name, log in logs.items() if any(LOSSES & point.keys() for point in log.points)}


def _by_name(settings: Settings, logs: Mapping[str, _Log]) -> dict[str, Mapping[str, Any]]:
    """What was given for each run.

    Raises:
        EvidenceError: it names a run or a setting that there is not.
    """
    if not any(isinstance(value, Mapping) for value in settings.values()):
        check_names(settings, SETTINGS, what="settings")
        return dict.fromkeys(logs, settings)
    given: dict[str, Mapping[str, Any]] = {}
    for name, own in settings.items():
        of_run = [each for each in logs if each == name or each.startswith(f"{name}, seed ")]
        if not of_run:
            raise EvidenceError(f"settings are given for a run {name!r}, and the runs are {listed(logs)}")
        check_names(own, SETTINGS, what=f"settings of run {name!r}")
        given |= dict.fromkeys(of_run, own)
    return given


def _run_of(log: _Log, given: Mapping[str, Any], found: Mapping[str, str]) -> Branch:
    held = {name: [value] for name, value in given.items() if value not in NOTHING}
    values = log.settings | held
    batch_size = _whole(_single("batch_size", values, needed=True), "batch_size")
    shape = _single("learning_rate_schedule", values)
    warmup = _examples("warmup", values, batch_size)
    rates = [_number(point.get("learning_rate"), "learning_rate") for point in log.points]
    changes = len({rate for rate in rates if rate is not None}) > 1
    peak = _single("peak_learning_rate", values)
    if peak is None and not changes:
        peak = _single("learning_rate", values, needed=True)
    training, losses = (_losses_of(log.points, kind, found) for kind in ("training_loss", "evaluation_loss"))
    return logged_run(
        batch_size=batch_size,
        learning_rate=rates if changes else _number(peak, "learning_rate"),  # type: ignore[arg-type]
        examples=[_place(point, batch_size) for point in log.points],
        losses=losses,
        training_losses=training,
        learning_rate_schedule=None if changes else shape,
        horizon=_examples("horizon", values, batch_size),
        warmup_examples=0 if changes else warmup or 0,
        seed=_whole(_single("seed", values) or 0, "seed", least=0),
        diverged=_yes("diverged", values),
        stopped=_yes("stopped", values),
        **({} if (part := _single("cooldown", values)) is None else {"cooldown": _number(part, "cooldown")}),  # type: ignore[arg-type]
    )


def _losses_of(points: Sequence[Mapping[str, Any]], kind: str, found: Mapping[str, str]) -> list[float | None] | None:
    """One kind of losses, at every point; a column that is called just "loss" is the kind that has no other."""
    other = "evaluation_loss" if kind == "training_loss" else "training_loss"
    named = kind if kind in found else "loss"
    if named == "loss" and (kind == "training_loss" and other not in found):
        return None
    values = [_number(point.get(named), found.get(named, named), may_fail=True) for point in points]
    return values if any(value is not None for value in values) else None


def _place(point: Mapping[str, Any], batch_size: int) -> float:
    """Examples seen at a point.

    Raises:
        EvidenceError: it tells none, or its steps and examples contradict each other.
    """
    steps, examples = (_number(point.get(name), name) for name in ("steps", "examples"))
    if steps is None and examples is None:
        raise EvidenceError(
            "a loss has neither steps nor examples: add a column 'step' or 'examples' (epochs times examples of each)"
        )
    if examples is None:
        return steps * batch_size  # type: ignore[operator]
    if steps is not None and abs(examples - steps * batch_size) > max(OFF_STEPS * batch_size, OFF_SHARE * examples):
        raise EvidenceError(
            f"steps times the batch size must be the examples, got {steps:g} steps of {batch_size} and {examples:g} "
            "examples: is the batch size that of all devices and accumulated gradients together? Say which column "
            f"counts by {as_column('examples')} for example"
        )
    return examples


def _single(name: str, values: Mapping[str, Sequence[Any]], *, needed: bool = False) -> Any:
    """The one value of a setting.

    Raises:
        EvidenceError: there are several, or none and it is needed.
    """
    own = list(dict.fromkeys(values.get(name, ())))
    if not own and needed:
        raise EvidenceError(
            f"it has no {name}: add a column {name!r}, say which one it is by {as_column(name)}, or give it by "
            f"settings={{{name!r}: ...}} or --set {name}=..."
        )
    if len(own) > 1 and len({str(value) for value in own}) > 1:
        raise EvidenceError(
            f"{name} must be the same all along a run, got {own[0]!r} and {own[1]!r}: if these are two runs, name them "
            "apart in a column 'run'"
        )
    return own[0] if own else None


def _examples(what: str, values: Mapping[str, Sequence[Any]], batch_size: int) -> int | None:
    """A horizon or a warm-up, which may be given in steps."""
    for unit, size in (("examples", 1), ("steps", batch_size)):
        value = _single(f"{what}_{unit}", values)
        if value is not None:
            # Trainers write -1 or 0 where there is none.
            return max(0, _whole(value, f"{what}_{unit}", least=-1)) * size or None
    return None


def _number(value: object, name: str, *, may_fail: bool = False) -> float | None:
    """A number, also of a text; None for nothing.

    Raises:
        EvidenceError: it is none, or not finite where it must be.
    """
    if value in NOTHING:
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        comma = ": write it with a decimal point" if "," in str(value) else ""
        raise EvidenceError(f"{name} must be a number, got {value!r}{comma}") from None
    if not (may_fail or math.isfinite(number)):
        return None
    return number


def _whole(value: object, name: str, *, least: int = 1) -> int:
    number = _number(value, name)
    if number is None or number != int(number) or number < least:
        raise EvidenceError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(number)


def _yes(name: str, values: Mapping[str, Sequence[Any]]) -> bool:
    """Whether a setting says yes; one that is not there says no.

    Raises:
        EvidenceError: it says neither yes nor no.
    """
    value = _single(name, values)
    text = str(value).strip().lower()
    if value is None or text in ("false", "0", "0.0", "no"):
        return False
    if text in ("true", "1", "1.0", "yes"):
        return True
    raise EvidenceError(f"{name} must be true or false, got {value!r}")

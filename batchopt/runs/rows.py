"""The rows of a log as runs: which run each is of, what it holds, and whether that goes together."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchopt.errors import EvidenceError
from batchopt.evidence import Branch
from batchopt.runs.columns import (
    PART_OF_BATCH,
    POINT,
    SETTINGS,
    as_column,
    check_names,
    check_needed,
    is_named,
    listed,
    plain,
    recognise,
)  # fmt: skip
from batchopt.runs.logged import logged_run
from batchopt.runs.rates import SAME

Row = Mapping[str, Any]
Settings = Mapping[str, Any] | Mapping[str, Mapping[str, Any]]

NOTHING = (None, "")
PLACES, LOSSES = {"steps", "examples"}, {"loss", "training_loss", "evaluation_loss"}
OFF_STEPS, OFF_SHARE = 2.0, 0.05
"""Steps times the batch size may differ from the examples by so many steps, or by this share: last batches of an epoch
may be smaller."""
ONE_OF = (
    {"learning_rate", "peak_learning_rate"}, {"horizon_steps", "horizon_examples"}, {"warmup_steps", "warmup_examples"},
)  # fmt: skip
"""What is given by one of these counts over what the log holds by another."""
RATES = {"learning_rate", "peak_learning_rate", "learning_rate_schedule", "warmup_steps", "warmup_examples"}
"""What says how a rate changes, in place of logged rates."""
THOUSANDS = re.compile(r"[1-9]\d{0,2}(,\d{3})+")
"""A whole number with commas between thousands."""
ENOUGH = 3
"""So many finite losses tell which metrics are logged beside them."""


@dataclass(slots=True)
class _Log:
    """What was found of one run: values of its settings, its points in the order of the log, and the rows of these.

    Parts are columns above 1 of which the batch size may be a multiple.
    """

    settings: dict[str, list[Any]] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    parts: dict[str, Any] = field(default_factory=dict)


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
    every = _without_summaries(list(rows))
    names = dict.fromkeys(name for row in every for name in row)
    found = recognise(names, columns)
    by_run = [own for own in settings.values() if isinstance(own, Mapping)]
    check_needed(names, found, {name for own in by_run or [settings] for name in own})
    is_global = "batch_size" in columns or plain(found.get("batch_size", "")) == "global_batch_size"
    parts = [] if is_global else [name for name in names if PART_OF_BATCH.fullmatch(plain(name))]
    logs = _by_run(every, found, only, parts)
    if not logs:
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


def _without_summaries(rows: Sequence[Row]) -> Sequence[Row]:
    """Rows without the mean over a whole run that the trainer of Hugging Face writes beside its `train_runtime`."""
    is_end = [any(plain(name) == "train_runtime" and row[name] not in NOTHING for name in row) for row in rows]
    if not any(is_end):
        return rows
    held = [{name for name in row if row[name] not in NOTHING and is_named(name, "training_loss")} for row in rows]
    elsewhere = {name for names, ends in zip(held, is_end, strict=True) if not ends for name in names}
    means = {name for names, ends in zip(held, is_end, strict=True) if ends for name in names}
    return [
        {name: value for name, value in row.items() if name not in (means if ends else means - elsewhere)}
        for row, ends in zip(rows, is_end, strict=True)
    ]


def _by_run(rows: Iterable[Row], found: Mapping[str, str], only: str, parts: Sequence[str]) -> dict[str, _Log]:
    """Settings and points of every run; what has neither is left out."""
    logs: dict[str, _Log] = {}
    cells = [
        (row, {ours: row[theirs] for ours, theirs in found.items() if row.get(theirs) not in NOTHING}) for row in rows
    ]
    seeds: dict[str, set[str]] = {}
    for _, held in cells:
        seeds.setdefault(str(held.get("run", only)), set()).update({str(held["seed"])} if "seed" in held else ())
    for row, held in cells:
        name = str(held.get("run", only))
        log = logs.setdefault(
            f"{name}, seed {held['seed']}" if "seed" in held and len(seeds[name]) > 1 else name, _Log()
        )
        for ours in held.keys() & set(SETTINGS):
            log.settings.setdefault(ours, []).append(held[ours])
        if held.keys() & LOSSES or (held.keys() & PLACES and "learning_rate" in held):
            log.points.append({ours: held[ours] for ours in POINT if ours in held})
            log.rows.append(row)
        log.parts |= {name: row[name] for name in parts if (_finite(row.get(name)) or 0.0) > 1.0}
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
    if log.parts and "batch_size" not in held:
        told = ", ".join(f"{name} {value}" for name, value in log.parts.items())
        raise EvidenceError(
            f"batch_size must count all devices and accumulated gradients together, and the log holds {told}: give it "
            f"by settings={{'batch_size': ...}} or --set batch_size=..., or say which column it is by "
            f"{as_column('batch_size', found.get('batch_size', '...'))}"
        )
    over = {name for names in ONE_OF if names & held.keys() for name in names}
    values = {name: own for name, own in log.settings.items() if name not in over} | held
    batch_size = _whole(_single("batch_size", values, needed=True), "batch_size")
    rate, shape = _rate_of(log, values, RATES & held.keys())
    is_logged = isinstance(rate, list)
    _drop_fillers(log, found)
    training, losses = (_losses_of(log.points, kind, found) for kind in ("training_loss", "evaluation_loss"))
    return logged_run(
        batch_size=batch_size,
        learning_rate=rate,
        examples=[_place(point, batch_size) for point in log.points],
        losses=losses,
        training_losses=training,
        learning_rate_schedule=shape,
        horizon=_examples("horizon", values, batch_size),
        warmup_examples=0 if is_logged else _examples("warmup", values, batch_size) or 0,
        seed=_whole(_single("seed", values) or 0, "seed", least=0),
        diverged=_yes("diverged", values),
        stopped=_yes("stopped", values),
        **({} if (part := _single("cooldown", values)) is None else {"cooldown": _number(part, "cooldown")}),  # type: ignore[arg-type]
    )


def _rate_of(
    log: _Log, values: Mapping[str, Sequence[Any]], given: Container[str]
) -> tuple[float | list[float | None], Any]:
    """The peak rate and the name of its schedule, or the rates as they were logged.

    Args:
        log: with logged rates, perhaps.
        values: of settings, those that were given in place of the log's.
        given: which of those about the rate were.

    Raises:
        EvidenceError: there is none, or there are two.
    """
    logged = [_number(point.get("learning_rate"), "learning_rate") for point in log.points]
    rates = {rate for rate in logged if rate is not None}
    shape = _single("learning_rate_schedule", values)
    of_caller = [name for name in sorted(RATES) if name in given]
    if len(rates) > 1 and not of_caller:
        return logged, None
    if len(rates) > 1 and shape is None:
        raise EvidenceError(
            f"settings give {' and '.join(of_caller)}, which counts over the logged learning rates, and these change: "
            "give learning_rate_schedule too, 'constant' if the rate is"
        )
    peak = _number(_single("peak_learning_rate", values), "peak_learning_rate")
    if len(rates) > 1 and "learning_rate" not in given:
        return max(rates) if peak is None else peak, shape
    rate = _number(_single("learning_rate", values, needed=peak is None), "learning_rate")
    if rate is not None and peak is not None and abs(rate - peak) > SAME * max(rate, peak):
        raise EvidenceError(
            f"the configured learning rate is {peak:g}, and the logged one is {rate:g} all along: settings="
            f"{{'learning_rate': ...}} or --set learning_rate=... decides"
        )
    told = rate if peak is None else peak
    if told is None:
        raise EvidenceError("learning_rate must be finite")
    return told, shape


def _drop_fillers(log: _Log, found: Mapping[str, str]) -> None:
    """Leave out NaN in rows of other metrics: those that hold one which is never logged beside that loss."""
    for kind in LOSSES:
        given = [_number(point.get(kind), found.get(kind, kind), may_fail=True) for point in log.points]
        finite = [row for row, loss in zip(log.rows, given, strict=True) if loss is not None and math.isfinite(loss)]
        if len(finite) < ENOUGH or len(finite) == sum(loss is not None for loss in given):
            continue
        beside = {name for row in finite for name in row if _finite(row[name]) is not None} | set(found.values())
        for point, row, loss in zip(log.points, log.rows, given, strict=True):
            others = (name for name in row if name not in beside and _finite(row[name]) is not None)
            if loss is not None and math.isnan(loss) and any(others):
                del point[kind]


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
    if any(isinstance(value, list | tuple | dict | set) for value in values.get(name, ())):
        raise EvidenceError(f"{name} must be one value, got {values[name][-1]!r}")
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
    """A number, also of a text; None for nothing, and for what is not finite unless it may be.

    Raises:
        EvidenceError: it is none.
    """
    if value in NOTHING:
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except OverflowError:
        raise EvidenceError(f"{name} must be a number below 1e308, got a whole number that is larger") from None
    except (TypeError, ValueError):
        raise EvidenceError(f"{name} must be a number, got {value!r}{_remedy(str(value))}") from None
    if not (may_fail or math.isfinite(number)):
        return None
    return number


def _remedy(text: str) -> str:
    if THOUSANDS.fullmatch(text.strip()):
        return f": write it as {text.replace(',', '').strip()}"
    return ": write it with a decimal point" if "," in text else ""


def _finite(value: object) -> float | None:
    """A finite number; None for anything else."""
    try:
        return _number(value, "")
    except EvidenceError:
        return None


def _whole(value: object, name: str, *, least: int = 1) -> int:
    number = _number(value, name)
    if number is None or number != int(number) or number < least:
        raise EvidenceError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(number)


def _yes(name: str, values: Mapping[str, Sequence[Any]]) -> bool:
    """Whether a setting says yes, once at least; one that is not there says no.

    Raises:
        EvidenceError: it says neither yes nor no.
    """
    return True in [_is_yes(name, value) for value in dict.fromkeys(values.get(name, ()))]


def _is_yes(name: str, value: object) -> bool:
    text = str(value).strip().lower()
    if text in ("false", "0", "0.0", "no"):
        return False
    if text in ("true", "1", "1.0", "yes"):
        return True
    raise EvidenceError(f"{name} must be true or false, got {value!r}")

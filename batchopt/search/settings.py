"""What a study is about, kept in the study's own attributes so that every worker and every part finds it there.

A text of more than 2,000 characters is written in pieces: every storage takes 2,045.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from optuna.study import StudyDirection

from batchopt._checks import check_count
from batchopt._codec import Record, Upgrade, gained, record_name
from batchopt.errors import EvidenceError, RecordError
from batchopt.forecasting.constant import ConstantForecast
from batchopt.forecasting.decaying import DecayingForecast
from batchopt.forecasting.forecast import Forecast
from batchopt.forecasting.metric_curve import curve_of
from batchopt.learning_rate_schedule import Shape, check_shape
from batchopt.planning.goal import (
    BestMetric,
    Goal,
    LossGoal,
    LowestLoss,
    MetricGoal,
    ReachLoss,
    ReachMetric,
    check_goal,
)
from batchopt.search.decay import Decay, decay_of, is_kept, kept_shape, taken_shape
from batchopt.search.metric_reading import MetricReading
from batchopt.search.parameters import Log2, check_name, holds_exponent, to_batch_size, to_learning_rate
from batchopt.search.saying import warn_once

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

T = TypeVar("T")

SETTINGS_KEY = "batchopt:settings"
FORECAST_KEY = "batchopt:forecast"
PIECE = 2_000
SHOWN = 5
"""Values of a function of progress that a message shows: at its quarters."""


@dataclass(frozen=True, slots=True)
class StudySettings(Record):
    """How to read a study's trials.

    Attributes:
        goal: in the loss, or in what a metric is read as.
        batch_size: name of the batch-size parameter.
        exponent: whether that parameter holds log2 of the batch size.
        learning_rate: name of the learning-rate parameter.
        decay: how the learning rate of trials decays; None where they keep it.
        metric: how what trials report is read as a loss, where it is a metric; None where it is a loss.
    """

    SCHEMA: ClassVar[str] = "batchopt.study/3"
    OLDER: ClassVar[Mapping[str, Upgrade]] = {
        "batchopt.study/1": gained("decay", "metric"),
        "batchopt.study/2": gained("metric"),
    }

    goal: LossGoal
    batch_size: str
    exponent: bool
    learning_rate: str
    decay: Decay | None = None
    metric: MetricReading | None = None

    @property
    def asked(self) -> Goal:
        """The goal as it was given."""
        return self.goal if self.metric is None else self.metric.goal

    def in_losses(self, trial: FrozenTrial) -> FrozenTrial:
        """A trial whose reports, and value where it is no cost, are losses."""
        return trial if self.metric is None else self.metric.in_losses(trial)

    @property
    def names(self) -> tuple[str, str]:
        """Of batch size and learning rate."""
        return self.batch_size, self.learning_rate

    def read(self, params: Mapping[str, Any]) -> tuple[int, float] | None:
        """Batch size and learning rate of a trial's parameters; None where it does not have both.

        Raises:
            EvidenceError: a value is no batch size, or no positive learning rate.
        """
        if self.batch_size not in params or self.learning_rate not in params:
            return None
        rate = params[self.learning_rate]
        try:
            return to_batch_size(params[self.batch_size], exponent=self.exponent), to_learning_rate(rate)
        except EvidenceError as error:
            raise EvidenceError(f"{error} (parameters {self.batch_size!r} and {self.learning_rate!r})") from None


@dataclass(frozen=True, slots=True)
class Given:
    """What the caller of a sampler, a pruner or `check` passed; None for what is to be read from the study."""

    forecast: Forecast | None = None
    goal: Goal | None = None
    batch_size: str | Log2 | None = None
    learning_rate: str | None = None
    learning_rate_schedule: Shape | tuple[float, ...] | None = None
    horizon: int | str | None = None
    warmup_examples: int | None = None

    def __post_init__(self) -> None:
        if self.forecast is not None and not isinstance(self.forecast, Forecast):
            raise TypeError(f"forecast must be a batchopt.Forecast or None, got {type(self.forecast).__name__}")
        self._take_goal()
        if self.batch_size is not None and not isinstance(self.batch_size, Log2):
            check_name("batch_size", self.batch_size)
        if self.learning_rate is not None:
            check_name("learning_rate", self.learning_rate)
        if self.learning_rate_schedule is not None:
            if not is_kept(self.learning_rate_schedule):
                check_shape(self.learning_rate_schedule)
            # Values in place of a function: a sampler goes to other processes with all that it was given.
            object.__setattr__(self, "learning_rate_schedule", kept_shape(self.learning_rate_schedule))
        self._check_examples()
        if self.batch_name is not None and self.batch_name == self.learning_rate:
            raise ValueError(
                f"batch_size and learning_rate must name two parameters, got {self.learning_rate!r} for both"
            )

    def _take_goal(self) -> None:
        """Check the goal, and put its budget in examples or seconds."""
        if self.goal is None:
            return
        check_goal(self.goal)
        if isinstance(self.goal, LowestLoss | BestMetric):
            population = None if self.forecast is None else self.forecast.population
            budget = LowestLoss(self.goal.within, self.goal.of).resolved(population)
            object.__setattr__(self, "goal", replace(self.goal, within=budget.within, of=budget.of))
        if self.forecast is not None and isinstance(self.goal, MetricGoal):
            curve = curve_of(self.forecast.metrics, self.goal.metric, self.forecast.doubts)
            if isinstance(self.goal, ReachMetric):
                curve.loss_at(self.goal.value)  # raises where no run comes so far

    def _check_examples(self) -> None:
        if isinstance(self.horizon, str):
            check_name("horizon", self.horizon)
        elif self.horizon is not None:
            check_count("horizon", self.horizon)
        if self.warmup_examples is not None:
            check_count("warmup_examples", self.warmup_examples, least=0)

    @property
    def batch_name(self) -> str | None:
        """Name of the batch-size parameter."""
        return self.batch_size.name if isinstance(self.batch_size, Log2) else self.batch_size

    @property
    def exponent(self) -> bool | None:
        """Whether that parameter holds an exponent."""
        return None if self.batch_size is None else holds_exponent(self.batch_size)

    @property
    def lacking(self) -> list[str]:
        """What must still be found in the study."""
        wanted = {"goal": self.goal, "batch_size": self.batch_size, "learning_rate": self.learning_rate}
        missing = [name for name, value in wanted.items() if value is None]
        return [*missing, "forecast"] if isinstance(self.goal, ReachMetric) and self.forecast is None else missing

    def settings_of(self, study: optuna.Study) -> StudySettings | None:
        """The settings of a study; None where something was left out."""
        if self.lacking or self.goal is None or self.batch_name is None or self.learning_rate is None:
            return None
        metric = None
        if isinstance(self.goal, MetricGoal):
            maximises = study.directions[0] == StudyDirection.MAXIMIZE
            metric = self._reading(self.goal, rises=maximises)
        goal = self._in_loss(metric)
        return StudySettings(goal, self.batch_name, bool(self.exponent), self.learning_rate, self._decay(goal), metric)

    def _reading(self, goal: MetricGoal, *, rises: bool) -> MetricReading:
        if self.forecast is None:
            return MetricReading(goal, rises)
        return MetricReading.of_curve(goal, curve_of(self.forecast.metrics, goal.metric))

    def _in_loss(self, metric: MetricReading | None) -> LossGoal:
        if isinstance(self.goal, BestMetric):
            return LowestLoss(self.goal.within, self.goal.of)
        if isinstance(self.goal, ReachMetric) and metric is not None:
            return ReachLoss(metric.loss_of(self.goal.value), self.goal.least)
        assert isinstance(self.goal, LossGoal)
        return self.goal

    def check(self) -> None:
        """Raise where a goal lacks its forecast, or how the rate of trials decays is missing or contradicts itself.

        Raises:
            EvidenceError: the goal is to reach a metric, and there is no forecast.
            ValueError: no horizon for a rate that decays until a loss is reached, or a horizon and no decay.
        """
        if isinstance(self.goal, ReachMetric) and self.forecast is None:
            raise EvidenceError(_lacks_forecast(self.goal))
        if not self.lacking and self.goal is not None:
            metric = self._reading(self.goal, rises=True) if isinstance(self.goal, MetricGoal) else None
            self._decay(self._in_loss(metric))

    def _decay(self, goal: LossGoal) -> Decay | None:
        own = None if self.forecast is None else self.forecast.task_schedule
        shape = self.learning_rate_schedule or own or "constant"
        warmup = self.warmup_examples
        if warmup is None and self.forecast is not None:
            warmup = self.forecast.warmup_examples
        return decay_of(shape, self.horizon, goal, warmup)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Known:
    """What a study is about, after what was given and what the study holds were put together."""

    settings: StudySettings
    forecast: ConstantForecast | DecayingForecast | None


def find(study: optuna.Study, given: Given) -> Known:
    """Put together what was given and what the study holds.

    A forecast that was given is used in place of the study's, which is said once where they differ.

    Raises:
        EvidenceError: the goal or a name is found nowhere, or contradicts the study's.
    """
    attributes = _attributes(study)
    stored = _stored_settings(attributes)
    if stored is not None:
        _check_agreement(given, stored)
    settings = stored or given.settings_of(study)
    if settings is None:
        raise EvidenceError(_missing(given))
    if given.forecast is None:
        return Known(settings, _stored_forecast(attributes))
    kept = kept_of(given.forecast, settings)
    if FORECAST_KEY in attributes:
        before, now = _fingerprint_of(str(attributes[FORECAST_KEY])), fingerprint(kept.to_json())
        if before != now:
            warn_once(
                f"Study {study.study_name} was begun with another forecast ({before}, now {now}): the one given now is "
                "used. Leave it out to go on with the study's, or start another study."
            )
    return Known(settings, kept)


def _missing(given: Given) -> str:
    if given.lacking == ["forecast"] and isinstance(given.goal, ReachMetric):
        return _lacks_forecast(given.goal)
    return (
        f"{' and '.join(given.lacking)} must be given, or be found in the study, which does not hold it: "
        "pass it here, or use a TradeoffSampler, which writes it to the study"
    )


def _lacks_forecast(goal: ReachMetric) -> str:
    return (
        f"forecast must be given for {goal!r}, of a task with metrics={{{goal.metric!r}: ...}}, to tell whether larger "
        "values are better: without one report what falls, 1 - accuracy, and take ReachLoss"
    )


def kept_of(forecast: Forecast, settings: StudySettings) -> ConstantForecast | DecayingForecast:
    """What a study keeps of a forecast."""
    return forecast.constant if settings.decay is None else forecast.decaying


def remember(study: optuna.Study, given: Given) -> None:
    """Write to the study what was given, where the study does not hold it yet and the settings are whole."""
    attributes = _attributes(study)
    if SETTINGS_KEY not in attributes and (own := given.settings_of(study)) is not None:
        _write(study, SETTINGS_KEY, own.to_json())
    if given.forecast is not None and FORECAST_KEY not in attributes:
        settings = _stored_settings(attributes) or given.settings_of(study)
        if settings is not None:
            _write(study, FORECAST_KEY, kept_of(given.forecast, settings).to_json())


def _attributes(study: optuna.Study) -> dict[str, Any]:
    # Samplers of a study with a Hyperband pruner see a stand-in that has no user_attrs, only the storage.
    return study._storage.get_study_user_attrs(study._study_id)


def _check_agreement(given: Given, stored: StudySettings) -> None:
    pairs = {
        "goal": (given.goal, stored.asked),
        "batch_size": (given.batch_name, stored.batch_size),
        "batch_size as an exponent": (given.exponent, stored.exponent),
        "learning_rate": (given.learning_rate, stored.learning_rate),
        "learning_rate_schedule": (
            None if given.learning_rate_schedule is None else taken_shape(given.learning_rate_schedule),
            "constant" if stored.decay is None else stored.decay.schedule,
        ),
        "horizon": (given.horizon, None if stored.decay is None else stored.decay.horizon),
        "warmup_examples": (
            given.warmup_examples,
            given.warmup_examples if stored.decay is None else stored.decay.warmup_examples,
        ),
    }
    for what, (now, before) in pairs.items():
        if now is not None and now != before:
            raise EvidenceError(
                f"{what} must be the one that the study was started with, got {_in_short(now)}, the study holds "
                f"{_in_short(before)}: pass the study's, or start another study"
            )


def _in_short(value: object) -> str:
    """A value in a message: of a function of progress a few of its values."""
    if isinstance(value, tuple) and len(value) > SHOWN:
        shown = (value[round(i * (len(value) - 1) / (SHOWN - 1))] for i in range(SHOWN))
        return f"a function of progress that goes {', '.join(f'{multiplier:.4g}' for multiplier in shown)}"
    return repr(value)


@lru_cache(maxsize=8)
def fingerprint(text: str) -> str:
    """Of what a study holds."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _fingerprint_of(stored: str) -> str:
    return fingerprint(stored) if stored.startswith("{") else stored.partition(":")[0]


def _write(study: optuna.Study, key: str, text: str) -> None:
    if len(text) <= PIECE:
        study._storage.set_study_user_attr(study._study_id, key, text)
        return
    digest = fingerprint(text)
    pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    for i, piece in enumerate(pieces):
        study._storage.set_study_user_attr(study._study_id, f"{key}:{digest}:{i}", piece)
    # Last, so that no worker reads half a text; the digest keeps two workers' pieces apart.
    study._storage.set_study_user_attr(study._study_id, key, f"{digest}:{len(pieces)}")


def _stored_forecast(attributes: dict[str, Any]) -> ConstantForecast | DecayingForecast | None:
    return _stored(attributes, FORECAST_KEY, _read_forecast, "pass the forecast again")


def _stored_settings(attributes: dict[str, Any]) -> StudySettings | None:
    return _stored(attributes, SETTINGS_KEY, _read_settings, "start another study")


def _stored(attributes: dict[str, Any], key: str, read: Callable[[str], T], remedy: str) -> T | None:
    """What an attribute and its pieces hold.

    Raises:
        EvidenceError: they are damaged, or written by a newer version.
    """
    pointer = attributes.get(key)
    if pointer is None:
        return None
    try:
        if pointer.startswith("{"):
            return read(pointer)
        digest, _, count = pointer.partition(":")
        text = "".join(attributes[f"{key}:{digest}:{i}"] for i in range(int(count)))
        if fingerprint(text) != digest:
            raise ValueError("its pieces are not what was written")
        return read(text)
    except (AttributeError, KeyError, ValueError, TypeError, RecordError) as error:
        raise EvidenceError(f"the study's attribute {key} cannot be read ({error}): {remedy}") from None


@lru_cache(maxsize=8)
def _read_forecast(text: str) -> ConstantForecast | DecayingForecast:
    decaying = record_name(text) == DecayingForecast.SCHEMA.rpartition("/")[0]
    return DecayingForecast.from_json(text) if decaying else ConstantForecast.from_json(text)


@lru_cache(maxsize=8)
def _read_settings(text: str) -> StudySettings:
    return StudySettings.from_json(text)

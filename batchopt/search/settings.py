"""What a study is about, kept in the study's own attributes so that every worker and every part finds it there.

Attributes are written in pieces of less than 2,045 characters, the most that every storage takes.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from batchopt._codec import Record
from batchopt.errors import EvidenceError
from batchopt.forecasting.forecast import Forecast
from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.search.parameters import Log2, check_name, holds_exponent, to_batch_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    import optuna

_logger = logging.getLogger(__name__)

SETTINGS_KEY = "batchopt:settings"
FORECAST_KEY = "batchopt:forecast"
PIECE = 2_000


@dataclass(frozen=True, slots=True)
class StudySettings(Record):
    """How to read a study's trials.

    Attributes:
        goal: what the objective's value means.
        batch_size: name of the batch-size parameter.
        exponent: whether that parameter holds log2 of the batch size.
        learning_rate: name of the learning-rate parameter.
    """

    SCHEMA: ClassVar[str] = "batchopt.study/1"

    goal: ReachLoss | LowestLoss
    batch_size: str
    exponent: bool
    learning_rate: str

    def read(self, params: Mapping[str, Any]) -> tuple[int, float] | None:
        """Batch size and learning rate of a trial's parameters; None where it does not have both.

        Raises:
            EvidenceError: a value is no batch size, or no positive learning rate.
        """
        if self.batch_size not in params or self.learning_rate not in params:
            return None
        rate = params[self.learning_rate]
        if isinstance(rate, bool) or not isinstance(rate, int | float) or rate <= 0:
            raise EvidenceError(f"the learning rate {self.learning_rate!r} must be a positive number, got {rate!r}")
        return to_batch_size(params[self.batch_size], exponent=self.exponent), float(rate)


@dataclass(frozen=True, slots=True)
class Given:
    """What the caller of a sampler, a pruner or `check` passed; None for what is to be read from the study."""

    forecast: Forecast | None = None
    goal: ReachLoss | LowestLoss | None = None
    batch_size: str | Log2 | None = None
    learning_rate: str | None = None

    def __post_init__(self) -> None:
        if self.forecast is not None and not isinstance(self.forecast, Forecast):
            raise TypeError(f"forecast must be a batchopt.Forecast or None, got {type(self.forecast).__name__}")
        if self.goal is not None and not isinstance(self.goal, ReachLoss | LowestLoss):
            raise TypeError(f"goal must be a batchopt.ReachLoss or batchopt.LowestLoss, got {self.goal!r}")
        if self.batch_size is not None and not isinstance(self.batch_size, Log2):
            check_name("batch_size", self.batch_size)
        if self.learning_rate is not None:
            check_name("learning_rate", self.learning_rate)
        if self.batch_name is not None and self.batch_name == self.learning_rate:
            raise ValueError(
                f"batch_size and learning_rate must name two parameters, got {self.learning_rate!r} for both"
            )

    @property
    def batch_name(self) -> str | None:
        """Name of the batch-size parameter."""
        return self.batch_size.name if isinstance(self.batch_size, Log2) else self.batch_size

    @property
    def exponent(self) -> bool | None:
        """Whether that parameter holds an exponent."""
        return None if self.batch_size is None else holds_exponent(self.batch_size)

    @property
    def settings(self) -> StudySettings | None:
        """The settings of a study; None where something was left out."""
        if self.goal is None or self.batch_name is None or self.exponent is None or self.learning_rate is None:
            return None
        return StudySettings(self.goal, self.batch_name, self.exponent, self.learning_rate)


@dataclass(frozen=True, slots=True)
class Known:
    """What a study is about, after what was given and what the study holds were put together."""

    settings: StudySettings
    forecast: Forecast | None


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
    settings = stored or given.settings
    if settings is None:
        wanted = {"goal": given.goal, "batch_size": given.batch_size, "learning_rate": given.learning_rate}
        missing = " and ".join(name for name, value in wanted.items() if value is None)
        raise EvidenceError(
            f"{missing} must be given, or be found in the study, and is neither: "
            "pass it here, or use a TradeoffSampler, which writes it there"
        )
    if given.forecast is None:
        return Known(settings, _stored_forecast(attributes))
    if FORECAST_KEY in attributes:
        before, now = str(attributes[FORECAST_KEY]).partition(":")[0], fingerprint(given.forecast)
        if before != now:
            _warn_of_another_forecast(study.study_name, before, now)
    return Known(settings, given.forecast)


def remember(study: optuna.Study, given: Given) -> None:
    """Write to the study what was given, where the study does not hold it yet and the settings are whole."""
    attributes = _attributes(study)
    if given.settings is not None and SETTINGS_KEY not in attributes:
        study._storage.set_study_user_attr(study._study_id, SETTINGS_KEY, given.settings.to_json())
    if given.forecast is not None and FORECAST_KEY not in attributes:
        _write_forecast(study, given.forecast)


def _attributes(study: optuna.Study) -> dict[str, Any]:
    # Samplers of a study with a Hyperband pruner see a stand-in that has no user_attrs, only the storage.
    return study._storage.get_study_user_attrs(study._study_id)


def _check_agreement(given: Given, stored: StudySettings) -> None:
    pairs = {
        "goal": (given.goal, stored.goal),
        "batch_size": (given.batch_name, stored.batch_size),
        "batch_size as an exponent": (given.exponent, stored.exponent),
        "learning_rate": (given.learning_rate, stored.learning_rate),
    }
    for what, (now, before) in pairs.items():
        if now is not None and now != before:
            raise EvidenceError(
                f"{what} must be the one that the study was started with, got {now!r}, the study holds {before!r}: "
                "leave it out, or start another study"
            )


@lru_cache(maxsize=8)
def fingerprint(forecast: Forecast) -> str:
    """Of a forecast's contents."""
    return hashlib.sha256(forecast.to_json().encode()).hexdigest()[:12]


@lru_cache(maxsize=64)
def _warn_of_another_forecast(study_name: str, before: str, now: str) -> None:
    _logger.warning(
        "Study %s was begun with another forecast (%s, now %s): the one given now is used. Leave it out to go on with "
        "the study's, or start another study.",
        study_name,
        before,
        now,
    )


def _write_forecast(study: optuna.Study, forecast: Forecast) -> None:
    text, digest = forecast.to_json(), fingerprint(forecast)
    pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    for i, piece in enumerate(pieces):
        study._storage.set_study_user_attr(study._study_id, f"{FORECAST_KEY}:{digest}:{i}", piece)
    # Last, so that no worker reads half a forecast; the digest keeps two workers' pieces apart.
    study._storage.set_study_user_attr(study._study_id, FORECAST_KEY, f"{digest}:{len(pieces)}")


def _stored_forecast(attributes: dict[str, Any]) -> Forecast | None:
    pointer = attributes.get(FORECAST_KEY)
    if pointer is None:
        return None
    digest, _, count = str(pointer).partition(":")
    try:
        return _read_forecast("".join(attributes[f"{FORECAST_KEY}:{digest}:{i}"] for i in range(int(count))))
    except (KeyError, ValueError):
        raise EvidenceError(
            f"the study's attribute {FORECAST_KEY} is damaged ({pointer!r}): pass the forecast again"
        ) from None


def _stored_settings(attributes: dict[str, Any]) -> StudySettings | None:
    text = attributes.get(SETTINGS_KEY)
    return None if text is None else _read_settings(text)


@lru_cache(maxsize=8)
def _read_forecast(text: str) -> Forecast:
    return Forecast.from_json(text)


@lru_cache(maxsize=8)
def _read_settings(text: str) -> StudySettings:
    return StudySettings.from_json(text)

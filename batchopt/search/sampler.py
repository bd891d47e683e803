"""An Optuna sampler that proposes batch size and learning rate together, by the trade-off law."""

from __future__ import annotations

import contextlib
import secrets
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler, BruteForceSampler, GridSampler, PartialFixedSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from batchopt.errors import EvidenceError
from batchopt.forecasting.forecast import Forecast
from batchopt.learning_rate_schedule import Shape
from batchopt.planning.goal import Goal
from batchopt.search.build import build_surrogate, memory_limit
from batchopt.search.fit import Thin
from batchopt.search.judgement import PROPOSAL_KEY, write_once
from batchopt.search.ledger import seen_in
from batchopt.search.naming import trained_without, warn_of_names
from batchopt.search.observations import check_objective
from batchopt.search.parameters import (
    Axis,
    Log2,
    batch_size_axis,
    learning_rate_axis,
    to_batch_size,
    to_learning_rate,
)
from batchopt.search.proposal import PRIMES, first_value, propose, within
from batchopt.search.saying import warn_once
from batchopt.search.search_space import last_distributions, others_of
from batchopt.search.settings import Given, Known, find, remember
from batchopt.search.surrogate import Surrogate

if TYPE_CHECKING:
    from optuna import Study

T = TypeVar("T")


class TradeoffSampler(BaseSampler):
    """Samples batch size, learning rate and what else every trial has, by the trade-off law.

    The next trial is the setting with the best chance to be worth what it costs, over what is believed about the law
    and about the pace of trials nearby. Parallel workers keep away from what is running. A setting that does not fit in
    memory, or that the trade-off rules out, is not proposed. The law starts from the forecast and is fitted again to
    the reports and values of all trials; without a forecast the first three trials fill the space, and every eighth
    trial does so later, because the law may have been misled. Evidence and settings are kept in the study, nothing that
    matters on the sampler; why a trial was proposed is its user attribute `batchopt:proposal`. In a study that lacks
    the two parameters it is the base sampler.

    Under `ReachLoss` the objective returns the cost at the crossing in the goal's unit, under `LowestLoss` the loss at
    the end of the budget. Trials report the loss against examples seen. Under `ReachMetric` and `BestMetric` they
    report the metric instead, and under `BestMetric` return it: such a study maximises an accuracy. With a forecast,
    whose task must have the metric, it is read as the loss that goes with it. Without one, which only `BestMetric`
    allows, it is read as an error: as 1 - accuracy where the study maximises, as it is where the study minimises.

    Where the learning rate of trials decays, say how (`learning_rate_schedule`, `horizon`). Each curve is then read
    through its own schedule, and a trial is judged by the loss that is predicted at the end of its decay. Under
    `ReachLoss` such a trial goes on to its horizon, returns what that costs, and is pruned by the objective where it
    ends above the loss. A rate that the sampler is not told to decay is taken for constant after a warm-up, and a loss
    that a decay lowers for progress.

    Args:
        forecast: from a probe; None to learn the law from the trials alone (or to read the study's).
        goal: what the objective's value means.
        batch_size: name of the parameter; `Log2(name)`, or a name that begins with `log2_`, if it holds the exponent.
        learning_rate: name of the parameter.
        learning_rate_schedule: of every trial: "constant", "linear", "cosine", "wsd", or a function of progress (0 to
            1); where it is left out, that of the forecast's task, else "constant". `learning_rate` is the peak rate.
        horizon: of that schedule: examples of every trial, or the name of the parameter or user attribute that holds
            them; left out where the rate is constant, and under `LowestLoss` where it is the budget.
        warmup_examples: over which the rate of every trial that decays rises from zero, 0 for none; cut to a fifth of
            shorter horizons. Where it is left out, that of the forecast's task, else 5 % of the horizon.
        base: sampler of parameters that only some trials have; None for `TPESampler(seed=seed)`.
        seed: of the proposals.

    Raises:
        ValueError: the base is a grid or brute-force sampler; no horizon for a rate that decays until a loss is
            reached, or a horizon for one that does not decay; the schedule is none of these.
        EvidenceError: the goal is `ReachMetric`, and no forecast is given.
    """

    def __init__(
        self,
        forecast: Forecast | None = None,
        *,
        goal: Goal,
        batch_size: str | Log2,
        learning_rate: str,
        learning_rate_schedule: Shape | None = None,
        horizon: int | str | None = None,
        warmup_examples: int | None = None,
        base: BaseSampler | None = None,
        seed: int | None = None,
    ) -> None:
        self._given = Given(forecast, goal, batch_size, learning_rate, learning_rate_schedule, horizon, warmup_examples)
        if goal is None or batch_size is None or learning_rate is None:
            raise TypeError("goal, batch_size and learning_rate must be given")
        self._given.check()
        if base is not None and not isinstance(base, BaseSampler):
            raise TypeError(f"base must be an Optuna sampler or None, got {base!r}")
        if isinstance(base, GridSampler | BruteForceSampler):
            raise ValueError(
                f"base must not be a {type(base).__name__}, which runs through a list of its own: take TPESampler, "
                "RandomSampler, QMCSampler or GPSampler, or leave it out"
            )
        self._base = base if base is not None else TPESampler(seed=seed)
        self._entropy = _fresh_entropy() if seed is None else seed

    def reseed_rng(self) -> None:
        """Draw anew, which Optuna asks of every worker."""
        self._base.reseed_rng()
        self._entropy = _fresh_entropy()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Write goal, names and forecast to the study, where it does not hold them yet."""
        remember(study, self._given)
        self._base.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Pass on to the base sampler, and look whether the study is what it is taken for.

        Raises:
            EvidenceError: the study contradicts the goal or the names that it was begun with. The trial is kept.
        """
        self._base.after_trial(study, trial, state, values)
        if state not in (TrialState.COMPLETE, TrialState.PRUNED):
            return
        known = find(study, self._given)
        if all(name in trial.params for name in known.settings.names):
            check_objective(study, known.settings)
        elif trial.last_step is not None or state == TrialState.COMPLETE:
            warn_of_names(study, known.settings, trial.params)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """What every trial so far has had, by the latest ranges; the base sampler's space where that lacks the two."""
        space = self._base.infer_relative_search_space(study, trial)
        joint = self._ours(study, lambda known: self._joint_space(study, trial, known))
        if joint is None:
            return space
        return {**{name: kind for name, kind in space.items() if name not in joint}, **joint}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Everything that the surrogate knows together; what it does not know by the base sampler."""
        params = self._ours(study, lambda known: self._sample_jointly(study, trial, known, search_space))
        return self._base.sample_relative(study, trial, search_space) if params is None else params

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Batch size or learning rate beside what the trial already has; other parameters by the base sampler."""
        value = self._ours(study, lambda known: self._sample_one(study, trial, known, param_name, param_distribution))
        if value is None:
            return self._base.sample_independent(study, trial, param_name, param_distribution)
        return value

    def _ours(self, study: Study, ask: Callable[[Known], T | None]) -> T | None:
        """What `ask` makes of what the study is about; None where it is left to the base sampler.

        Nothing here raises over what the user did: Optuna asks before the objective begins, and the trial would be left
        running for ever. What contradicts the goal is refused after the trial, and by `check`.
        """
        try:
            return ask(find(study, self._given))
        except EvidenceError as error:
            rule = str(error).partition(", got")[0]
            message = f"Study {study.study_name}: the base sampler chooses, because {error}."
            warn_once(message, about=f"{study.study_name} left to the base: {rule}")
        except Exception as error:  # a fault of ours must not cost a study either
            warn_once(
                f"Study {study.study_name}: the base sampler chooses, because of a fault in batchopt, which please "
                f"report: {traceback.format_exc()}",
                about=f"{study.study_name} {type(error).__name__}",
            )
        return None

    def _joint_space(self, study: Study, trial: FrozenTrial, known: Known) -> dict[str, BaseDistribution] | None:
        ranges = last_distributions(study, known.settings)
        if ranges is None:
            return None
        others = others_of(seen_in(study, known.settings, without=trial.number), known.settings)
        return {**dict(others), **dict(zip(known.settings.names, ranges, strict=True))}

    def _sample_jointly(
        self, study: Study, trial: FrozenTrial, known: Known, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any] | None:
        names = known.settings.names
        held = _held(study, trial)
        if not all(name in search_space or name in held for name in names):
            return None
        surrogate = build_surrogate(study, known, without=trial.number)
        joint = {name for name, _ in surrogate.places.others} if isinstance(surrogate, Surrogate) else set()
        own = {name: kind for name, kind in search_space.items() if name in joint or name in names}
        rest = {name: kind for name, kind in search_space.items() if name not in own}
        params = self._base.sample_relative(study, trial, rest)
        if isinstance(surrogate, Thin):  # batch size and learning rate are chosen one by one
            return params
        return {**params, **self._proposed(study, trial, known, surrogate, own, {**params, **held})}

    def _sample_one(
        self, study: Study, trial: FrozenTrial, known: Known, name: str, distribution: BaseDistribution
    ) -> Any:
        settings = known.settings
        if name not in settings.names or trained_without(study, settings) is not None:
            return None
        surrogate = build_surrogate(study, known, without=trial.number)
        chosen = {**_held(study, trial), **trial.params}
        if isinstance(surrogate, Surrogate):
            proposed = self._proposed(study, trial, known, surrogate, {name: distribution}, chosen)
            if name in proposed:
                return proposed[name]
        axis = self._axis(known, name, distribution)
        if name == settings.batch_size:
            axis = axis.up_to(memory_limit(known, seen_in(study, settings)))
        if all(each == name or each in chosen for each in settings.names):
            why = surrogate.reason if isinstance(surrogate, Thin) else "the law does not say what gets there"
            self._tell(study, trial, f"Fills the space: {why}.")
        return first_value(axis, trial.number, PRIMES[settings.names.index(name)], self._rng(trial))

    def _rng(self, trial: FrozenTrial) -> np.random.Generator:
        """The trial's own generator: no state is shared by threads, and a seed gives the same trials again."""
        return np.random.default_rng([self._entropy, trial.number, len(trial.params)])

    def _axis(self, known: Known, name: str, distribution: BaseDistribution) -> Axis:
        if name == known.settings.batch_size:
            return batch_size_axis(distribution, exponent=known.settings.exponent)
        return learning_rate_axis(distribution)

    def _tell(self, study: Study, trial: FrozenTrial, reason: str) -> None:
        # A trial of the caller's own making is not in the storage, and is not told.
        with contextlib.suppress(KeyError, UpdateFinishedTrialError):
            write_once(study, trial._trial_id, PROPOSAL_KEY, reason)

    def _proposed(
        self,
        study: Study,
        trial: FrozenTrial,
        known: Known,
        surrogate: Surrogate,
        own: dict[str, BaseDistribution],
        chosen: dict[str, Any],
    ) -> dict[str, Any]:
        """Values of the parameters in `own`, beside those already `chosen`; empty where the law knows none."""
        settings = known.settings
        sizes, rates = surrogate.space.batch_sizes, surrogate.space.learning_rates
        if settings.batch_size in own:
            sizes = batch_size_axis(own[settings.batch_size], exponent=settings.exponent)
        if settings.learning_rate in own:
            rates = learning_rate_axis(own[settings.learning_rate])
        if settings.batch_size in chosen:
            value = chosen[settings.batch_size]
            sizes = Axis.only(value, to_batch_size(value, exponent=settings.exponent))
        if settings.learning_rate in chosen:
            value = chosen[settings.learning_rate]
            rates = Axis.only(value, to_learning_rate(value))
        searched = within(surrogate, batch_sizes=sizes, learning_rates=rates)
        proposal = propose(searched, chosen, trial.number, self._rng(trial))
        if proposal is None:
            return {}
        ours = [name for name in settings.names if name in own and name not in chosen]
        if ours and all(name in own or name in chosen for name in settings.names):  # the last of the two is settled
            self._tell(study, trial, proposal.reason)
        values = {
            **proposal.others,
            settings.batch_size: proposal.batch_value,
            settings.learning_rate: proposal.rate_value,
        }
        return {name: value for name, value in values.items() if name in own}


def _held(study: Study, trial: FrozenTrial) -> dict[str, Any]:
    """Values that are settled before the sampler is asked: enqueued ones, and those of a PartialFixedSampler."""
    return {**unwrapped(study.sampler)[1], **trial.system_attrs.get("fixed_params", {})}


def unwrapped(sampler: BaseSampler) -> tuple[BaseSampler, dict[str, Any]]:
    """The sampler inside of any PartialFixedSampler, and the values that those hold."""
    held: dict[str, Any] = {}
    while isinstance(sampler, PartialFixedSampler):
        held = {**sampler._fixed_params, **held}
        sampler = sampler._base_sampler
    return sampler, held


def _fresh_entropy() -> int:
    return secrets.randbits(64)

"""What is tried next."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import optuna
import pytest
from landscape import BEST, LAW, LOSS, PRICE, SETTINGS, forecast_of, observation, steps_needed
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import create_trial

from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.search import TradeoffSampler, check
from batchopt.search.build import build_surrogate
from batchopt.search.judgement import FILLS_SPACE, PROPOSAL_KEY, bar_of, judge
from batchopt.search.parameters import Axis, Space
from batchopt.search.places import Places
from batchopt.search.proposal import FIRST_SPREAD, SPREAD_EVERY, Proposal, propose, within
from batchopt.search.settings import Known, StudySettings
from batchopt.search.surrogate import Surrogate

RATES = tuple(float(rate) for rate in np.geomspace(1e-4, 10.0, 40))
SPACE = Space(
    Axis(tuple(2**k for k in range(3, 12)), tuple(float(2**k) for k in range(3, 12))),
    Axis(RATES, RATES, math.log(RATES[1] / RATES[0])),
)
RANGES = {"batch_size": IntDistribution(8, 2048, log=True), "lr": FloatDistribution(1e-4, 10.0, log=True)}


def surrogate_of(spread: float = 0.3, settings: StudySettings = SETTINGS) -> Surrogate:
    surrogate = build_surrogate(optuna.create_study(), Known(settings, forecast_of(LAW, spread=spread).constant))
    assert isinstance(surrogate, Surrogate)
    return replace(surrogate, space=SPACE)


def proposals(surrogate: Surrogate, n: int = 40) -> list[Proposal]:
    found = [propose(surrogate, {}, SPREAD_EVERY * i, np.random.default_rng([1, i])) for i in range(n)]
    assert all(found)
    return [proposal for proposal in found if proposal is not None]


def test_proposals_are_good_and_differ() -> None:
    found = proposals(surrogate_of())
    costs = [steps_needed(p.batch_size, p.learning_rate) * PRICE(p.batch_size) for p in found]
    assert np.median(costs) < 1.4 * BEST
    assert len({(p.batch_size, p.learning_rate) for p in found}) == len(found)


def test_parallel_workers_keep_apart() -> None:
    """Each worker sees the others' trials run, so every proposal goes where none is."""
    surrogate, running = surrogate_of(), ()
    found = []
    for number in range(8, 14):
        proposal = propose(replace(surrogate, observations=running), {}, number, np.random.default_rng(number))
        assert proposal is not None
        found.append(proposal)
        seen = observation(number, proposal.batch_size, proposal.learning_rate)
        running = (*running, replace(seen, running=True))
    places = Places().of_settings([p.batch_size for p in found], [p.learning_rate for p in found])
    apart = [float(np.linalg.norm(a - b)) for a, b in itertools.combinations(places, 2)]
    assert min(apart) > 0.2
    assert np.median(apart) > 0.5


def test_nothing_dominated_is_proposed() -> None:
    seen = tuple(observation(i, 64, rate, values=(1.1 * BEST,)) for i, rate in enumerate((0.1, 0.15)))
    surrogate = replace(surrogate_of(), observations=seen)
    bar = bar_of(surrogate)
    assert bar.target is not None
    assert not any(judge(surrogate, bar, p.batch_size, p.learning_rate, {}).rejected for p in proposals(surrogate))
    # The judge is not idle: most of the space would be ruled out.
    grid = surrogate.grid()
    pairs = zip(grid.batch_sizes[::7], grid.learning_rates[::7], strict=True)
    assert np.mean([judge(surrogate, bar, int(b), float(r), {}).rejected for b, r in pairs]) > 0.5


def test_some_trials_fill_the_space_whatever_the_law_says() -> None:
    numbers = range(SPREAD_EVERY - 1, 40 * SPREAD_EVERY, SPREAD_EVERY)
    found = [propose(surrogate_of(0.05), {}, number, np.random.default_rng(number)) for number in numbers]
    sizes = [math.log2(p.batch_size) for p in found if p is not None]
    rates = [math.log10(p.learning_rate) for p in found if p is not None]
    for values, low, high in ((sizes, 3, 11), (rates, -4, 1)):
        quarters = np.histogram(values, bins=4, range=(low, high))[0]
        assert quarters.min() >= 5  # of 40


def test_without_a_forecast_the_first_trials_fill_the_space() -> None:
    blind = replace(surrogate_of(0.05), informed=False)
    first = [propose(blind, {}, number, np.random.default_rng(number)) for number in range(FIRST_SPREAD)]
    rates = [math.log10(p.learning_rate) for p in first if p is not None]
    assert max(rates) - min(rates) > 2.0


def test_memory_is_never_exceeded() -> None:
    surrogate = within(replace(surrogate_of(), largest_batch_size=40))
    assert max(p.batch_size for p in proposals(surrogate)) <= 40


def test_a_parameter_that_is_chosen_is_kept() -> None:
    surrogate = within(surrogate_of(), batch_sizes=Axis.only("512", 512.0))
    found = proposals(surrogate, 20)
    assert {p.batch_value for p in found} == {"512"}
    best = LAW.best_steps([512.0], LOSS)[1][0, 0]
    assert abs(np.median(np.log([p.learning_rate for p in found])) - math.log(best)) < math.log(2.0)


def test_a_goal_far_beyond_the_law_is_approached() -> None:
    """Settings are compared as far ahead as the curve is known, where the goal is further."""
    never = replace(surrogate_of(), goal=ReachLoss(1e-12, least=PRICE))
    found = proposals(never, 10)
    best = LAW.best_steps([64.0], LOSS)[1][0, 0]
    assert all(abs(math.log(p.learning_rate / best)) < math.log(10.0) for p in found)


def test_lowest_loss_within_a_budget() -> None:
    goal = LowestLoss(within=0.8 * BEST, of=PRICE)
    surrogate = surrogate_of(settings=replace(SETTINGS, goal=goal))
    found = proposals(surrogate, 20)
    ends = []
    for p in found:
        examples = math.floor(goal.within / PRICE(p.batch_size)) * p.batch_size
        ends.append(LAW.losses_at([float(p.batch_size)], [p.learning_rate], [float(examples)])[0, 0])
    assert np.median(ends) < 1.2 * np.min(surrogate.paced_scores(surrogate.grid())[0][0])


def test_two_objectives_spread_over_the_front() -> None:
    settings = replace(SETTINGS, goal=ReachLoss(LOSS, least=("steps", "examples")))
    found = proposals(surrogate_of(0.05, settings), 60)
    sizes = sorted(p.batch_size for p in found)
    assert sizes[5] <= 32
    assert sizes[-6] >= 256


def test_what_fills_the_space_is_not_refused() -> None:
    """Where the law is sure and wrong, only such a trial can show it."""
    sampler = TradeoffSampler(forecast_of(LAW), goal=SETTINGS.goal, batch_size="batch_size", learning_rate="lr", seed=0)
    study = optuna.create_study(sampler=sampler)
    for number in range(4 * SPREAD_EVERY):
        if number % SPREAD_EVERY < SPREAD_EVERY - 1:  # near the optimum, as the law would have them
            params = {"batch_size": 48 + number, "lr": 0.15}
            value = steps_needed(params["batch_size"], 0.15) * PRICE(params["batch_size"])
            study.add_trial(create_trial(params=params, distributions=RANGES, value=value))
            continue
        trial = study.ask(fixed_distributions=RANGES)
        assert study.trials[number].user_attrs[PROPOSAL_KEY] == FILLS_SPACE
        check(trial)  # does not raise TrialPruned
        study.tell(
            trial, steps_needed(trial.params["batch_size"], trial.params["lr"]) * PRICE(trial.params["batch_size"])
        )
    # It is not that all is accepted.
    study.enqueue_trial({"batch_size": 8, "lr": 1e-4})
    with pytest.raises(optuna.TrialPruned):
        check(study.ask(fixed_distributions=RANGES))


def test_what_is_told_is_not_tried_again() -> None:
    surrogate = surrogate_of(0.1)
    (first,) = proposals(surrogate, 1)
    cost = steps_needed(first.batch_size, first.learning_rate) * PRICE(first.batch_size)
    told = observation(0, first.batch_size, first.learning_rate, values=(cost,))
    places = Places()
    at = places.of(first.batch_size, first.learning_rate, {})
    for proposal in proposals(replace(surrogate, observations=(told,)), 20):
        assert np.linalg.norm(places.of(proposal.batch_size, proposal.learning_rate, {}) - at) > 0.1

"""Thompson sampling over the law."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import optuna
import pytest
from search.landscape import BEST, LAW, LOSS, PRICE, SETTINGS, forecast_of, observation, steps_needed

from batchopt.planning.goal import LowestLoss, ReachLoss
from batchopt.search.judgement import bar_of, judge
from batchopt.search.parameters import Axis, Space
from batchopt.search.proposal import Proposal, propose, within
from batchopt.search.settings import Known, StudySettings
from batchopt.search.surrogate import Surrogate, build_surrogate

RATES = tuple(float(rate) for rate in np.geomspace(1e-4, 10.0, 40))
SPACE = Space(
    Axis(tuple(2**k for k in range(3, 12)), tuple(float(2**k) for k in range(3, 12))),
    Axis(RATES, RATES, math.log(RATES[1] / RATES[0])),
)


def surrogate_of(spread: float = 0.3, settings: StudySettings = SETTINGS) -> Surrogate:
    surrogate = build_surrogate(optuna.create_study(), Known(settings, forecast_of(LAW, spread=spread)))
    assert isinstance(surrogate, Surrogate)
    return replace(surrogate, space=SPACE)


def proposals(surrogate: Surrogate, n: int = 40) -> list[Proposal]:
    found = [propose(surrogate, np.random.default_rng([1, i])) for i in range(n)]
    assert all(found)
    return [proposal for proposal in found if proposal is not None]


def test_proposals_are_good_and_differ() -> None:
    found = proposals(surrogate_of())
    costs = [steps_needed(p.batch_size, p.learning_rate) * PRICE(p.batch_size) for p in found]
    assert np.median(costs) < 1.4 * BEST
    assert len({(p.batch_size, p.learning_rate) for p in found}) == len(found)
    assert len({p.batch_size for p in found}) >= 3


def test_nothing_dominated_is_proposed() -> None:
    seen = tuple(observation(i, 64, rate, values=(1.1 * BEST,)) for i, rate in enumerate((0.1, 0.15)))
    surrogate = replace(surrogate_of(), observations=seen)
    bar = bar_of(surrogate)
    assert bar.target is not None
    assert not any(judge(surrogate, bar, p.batch_size, p.learning_rate).rejected for p in proposals(surrogate))
    # The judge is not idle: most of the space would be ruled out.
    sizes, rates = surrogate.grid()
    pairs = zip(sizes[::7], rates[::7], strict=True)
    assert np.mean([judge(surrogate, bar, int(b), float(r)).rejected for b, r in pairs]) > 0.5


def test_a_share_goes_beside_the_incumbent() -> None:
    """An incumbent far from where the law points is tried around all the same."""
    odd = observation(0, 1024, 2.0, values=(0.9 * BEST,))
    surrogate = replace(surrogate_of(), observations=(odd,), misfit=math.inf)
    near = [p for p in proposals(surrogate, 100) if p.batch_size >= 512 and p.learning_rate > 0.9]
    # 15 % of 100, with four standard errors of 3.6.
    assert 1 <= len(near) <= 30


def test_memory_is_never_exceeded() -> None:
    surrogate = within(replace(surrogate_of(), largest_batch_size=40))
    assert max(p.batch_size for p in proposals(surrogate)) <= 40


def test_a_parameter_that_is_chosen_is_kept() -> None:
    surrogate = within(surrogate_of(), batch_sizes=Axis.only("512", 512.0))
    found = proposals(surrogate, 20)
    assert {p.batch_value for p in found} == {"512"}
    best = LAW.best_steps([512.0], LOSS)[1][0, 0]
    assert abs(np.median(np.log([p.learning_rate for p in found])) - math.log(best)) < math.log(2.0)


def test_choices_are_not_repeated_while_others_are_left() -> None:
    space = Space(Axis((64, 128), (64.0, 128.0)), Axis((0.1, 0.2), (0.1, 0.2)))
    seen = (observation(0, 64, 0.1), observation(1, 128, 0.2), observation(2, 64, 0.2))
    surrogate = replace(surrogate_of(), space=space, observations=seen)
    assert {(p.batch_size, p.learning_rate) for p in proposals(surrogate, 10)} == {(128, 0.1)}
    everything = replace(surrogate, observations=(*seen, observation(3, 128, 0.1)))
    assert len(proposals(everything, 3)) == 3


def test_a_law_that_reaches_the_goal_nowhere_proposes_nothing() -> None:
    never = replace(surrogate_of(), goal=ReachLoss(1e-12, least=PRICE))
    assert all(
        propose(never, np.random.default_rng(i)) is None for i in range(10) if np.random.default_rng(i).uniform() < 0.9
    )


def test_lowest_loss_within_a_budget() -> None:
    goal = LowestLoss(within=0.8 * BEST, of=PRICE)
    surrogate = surrogate_of(settings=replace(SETTINGS, goal=goal))
    found = proposals(surrogate, 20)
    ends = []
    for p in found:
        examples = math.floor(goal.within / PRICE(p.batch_size)) * p.batch_size
        ends.append(LAW.losses_at([float(p.batch_size)], [p.learning_rate], [float(examples)])[0, 0])
    sizes, rates = surrogate.grid()
    assert np.median(ends) < 1.1 * np.min(surrogate.scores(sizes, rates)[0])


def test_two_objectives_spread_over_the_front() -> None:
    settings = replace(SETTINGS, goal=ReachLoss(LOSS, least=("steps", "examples")))
    found = proposals(surrogate_of(0.05, settings), 60)
    sizes = sorted(p.batch_size for p in found)
    assert sizes[5] <= 32
    assert sizes[-6] >= 256


@pytest.mark.parametrize("spread", [0.05, 0.8])
def test_the_wider_the_belief_the_wider_the_proposals(spread: float) -> None:
    found = proposals(surrogate_of(spread), 60)
    width = np.std([math.log(p.learning_rate) for p in found])
    assert (width > 0.75) == (spread == 0.8)

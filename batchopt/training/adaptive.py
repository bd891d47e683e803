"""A run that decides by itself when its learning rate decays.

It does as soon as a decay that begins now is predicted to end at the loss that is wanted.

Notation
    n, n0, n1   examples seen; where the decay begins; where it ends, n1 = n0 + n1 COOLDOWN
    r           what the run's log losses lie above a draw's prediction, in the middle of its last evaluations
    e           log loss of a draw at the end of a decay, r and the scatter of single runs included
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from batchopt._checks import check_count, check_positive
from batchopt.forecasting.belonging import is_same_loss, loss_again
from batchopt.forecasting.forecast import Forecast
from batchopt.forecasting.own_decision import CHANCE, LATER, OWN_SHARE
from batchopt.forecasting.schedule_points import course_along
from batchopt.learning_rate_schedule import COOLDOWN, LearningRateSchedule
from batchopt.planning.goal import ReachLoss
from batchopt.planning.plan import Plan
from batchopt.schedules.schedule import Schedule, Segment
from batchopt.training.adapted import Adapted, Decay, Divergence

LONGEST = 3.0
"""The run has at most this many times the examples that were planned; then it decays, whatever is predicted."""
LOOK_AHEAD_RATIO, LOOK_AHEAD = 1.05, 48
"""Beginnings of the decay that are compared: so far apart, and so many: up to ten times the examples seen."""
LATEST = 2.0
"""The run's losses since this share of its examples tell how it differs from the forecast."""
LOWERED, MOST_DIVERGENCES = 0.5, 3
"""A run that diverges begins again at this share of its learning rate, so many times at most: where stability ends is
known to within a factor of a few, and what still diverges at an eighth has another fault."""


class AdaptiveSchedule:
    """The schedule of a plan to reach a loss, whose decay begins when the run is ready for it.

    The rate stays at its peak until a decay that begins now is predicted, from the forecast and the run's own losses,
    to end at the loss or below with the chance that is wanted. Give it to `train` in place of a schedule: where a decay
    misses, the run goes back to where it began, and on from there; where the loss becomes NaN, infinite or three times
    the initial one, the run begins again at half the learning rate. In a loop of your own call `update` after every
    evaluation, take the batches from `scheduled_loader(dataset, adaptive)` and the learning rate from
    `scale_learning_rate`; where the decay ended too high and `may_go_on`, call `miss` and put the run back; where the
    run diverged and `may_begin_again`, call `diverge`, and begin with a new model, an optimizer at
    `adaptive.learning_rate`, a new loader and a new `scale_learning_rate`.

    The run is never more than three times as long as planned. What was done is `schedule`, which can be saved and
    followed again.

    Args:
        plan: whose schedule it starts with; of a goal to reach a loss, and by wsd.
        forecast: that the plan was made from.
        chance: with which a decay is to end at the loss, before it begins.

    Raises:
        TypeError: plan or forecast is something else.
        ValueError: the plan is not by wsd, or is for a budget, or was made from another forecast; the chance is not
            between 0 and 1.

    Example:
        >>> adaptive = AdaptiveSchedule(plan, forecast)                                   # doctest: +SKIP
        >>> result = train(task, adaptive)                                                # doctest: +SKIP
        >>> result.schedule.save("realised.json")                                         # doctest: +SKIP
    """

    def __init__(self, plan: Plan, forecast: Forecast, *, chance: float = CHANCE) -> None:
        if not isinstance(plan, Plan) or not isinstance(forecast, Forecast):
            raise TypeError(
                f"plan and forecast must be a batchopt.Plan and the batchopt.Forecast that it was made from, got "
                f"{type(plan).__name__} and {type(forecast).__name__}"
            )
        check_positive("chance", chance)
        if chance >= 1.0:
            raise ValueError(f"chance must be below 1, got {chance!r}: no forecast is certain")
        if not isinstance(plan.goal, ReachLoss) or plan.learning_rate_schedule != "wsd":
            raise ValueError(
                "an AdaptiveSchedule decides when a run that is to reach a loss decays, and the plan must leave that "
                f"open: ReachLoss with learning_rate_schedule='wsd', got {type(plan.goal).__name__} with "
                f"{plan.learning_rate_schedule!r}: plan anew, or train by plan.schedule"
            )
        _check_forecast(plan, forecast)
        self._plan, self._forecast, self._chance = plan, forecast, chance
        self._state, self._handed_out = Adapted(plan.schedule), 0

    @property
    def schedule(self) -> Schedule:
        """What was done so far, and what is planned from there."""
        return self._state.schedule

    @property
    def examples(self) -> int:
        """Examples of the whole run, as things are."""
        return self.schedule.examples

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Of the schedule, as things are."""
        return self.schedule.segments

    @property
    def steps(self) -> int:
        """Steps of the whole run, as things are."""
        return self.schedule.steps

    @property
    def loss(self) -> float:
        """The loss that is to be reached."""
        assert isinstance(self._plan.goal, ReachLoss)
        return self._plan.goal.loss

    @property
    def decay_begins(self) -> int:
        """Examples at which the decay begins, as things are."""
        rates = self.schedule.learning_rate_schedule
        assert rates is not None
        return rates.examples[-2]

    @property
    def planned_beginning(self) -> int:
        """Examples at which the decay was to begin by the plan."""
        rates = self._plan.schedule.learning_rate_schedule
        assert rates is not None
        return rates.examples[-2]

    @property
    def learning_rate(self) -> float:
        """Peak rate, as things are: the plan's, unless the run diverged at it."""
        assert self.schedule.learning_rate is not None
        return self.schedule.learning_rate

    @property
    def missed(self) -> tuple[Decay, ...]:
        """Decays that ended above the loss, and that the run went back on."""
        return self._state.missed

    @property
    def diverged(self) -> tuple[Divergence, ...]:
        """Runs that diverged before this one began, each at twice the rate of the next."""
        return self._state.diverged

    def __call__(self, examples_seen: int) -> int:
        """Batch size of the step that begins at `examples_seen`."""
        return self.schedule(examples_seen)

    def batches(self, start_examples: int = 0) -> Iterator[tuple[int, int]]:
        """(examples seen, batch size) of every step from `start_examples` on, each by the schedule as it is by then."""
        seen = start_examples
        while seen < self.examples:
            size = min(self(seen), self.examples - seen)
            yield seen, size
            seen += size

    def hand_out(self, examples: int) -> None:
        """Say that batches up to so many examples are drawn: the run is at least as long."""
        self._handed_out = max(self._handed_out, examples)

    def update(self, examples_seen: int, loss: float) -> bool:
        """Plan the decay anew by what the training shows, and say whether it moved. Once it has begun, nothing moves.

        Args:
            examples_seen: so far.
            loss: evaluated at that point.

        Raises:
            ValueError: the loss is not positive.
        """
        check_count("examples_seen", examples_seen, least=0)
        check_positive("loss", loss)
        if examples_seen > self.decay_begins or examples_seen <= (self._state.curve.examples or (-1,))[-1]:
            return False
        self._state = replace(self._state, curve=self._state.curve.after(examples_seen, loss))
        return self._decay_from(self._best_beginning(examples_seen))

    def miss(self, loss: float) -> int:
        """Say that the decay ended at a loss that is too high; gives the examples at which it began, to go on from.

        The run must be put back to where it was there.
        """
        check_positive("loss", loss)
        if not self.may_go_on:
            raise ValueError(f"the run has {self.examples} examples, and may have no more: end it here (may_go_on)")
        begin = self.decay_begins
        predicted = math.exp(float(np.median(self._ends([begin])[1:, 0])))
        steps = self.schedule.steps - round(self.schedule.steps_to(begin))
        decay = Decay(begin, self.examples, steps, predicted, loss)
        curve = self._state.curve.until(begin)
        self._state = replace(self._state, missed=(*self._state.missed, decay), curve=curve)
        self._handed_out = 0
        self._decay_from(self._best_beginning(math.ceil(LATER * begin)))
        return begin

    @property
    def gone_back(self) -> int:
        """Examples of decays that missed and of runs that diverged."""
        return sum(decay.end - decay.begin for decay in self.missed) + sum(run.examples for run in self.diverged)

    @property
    def steps_gone_back(self) -> int:
        """Likewise, in steps."""
        return sum(decay.steps for decay in self.missed) + sum(run.steps for run in self.diverged)

    @property
    def may_go_on(self) -> bool:
        """Whether the run may still be made longer."""
        return self.decay_begins * LATER < (1.0 - COOLDOWN) * self._longest

    def diverge(self, examples_seen: int) -> Schedule:
        """Say that the loss became NaN or infinite: gives the schedule by which the run begins again, at half the rate.

        Args:
            examples_seen: when it did.

        Raises:
            ValueError: the run may not begin again.
        """
        check_count("examples_seen", examples_seen, least=0)
        if not self.may_begin_again(examples_seen):
            raise ValueError(
                f"the run diverged at {examples_seen} examples at a learning rate of {self.learning_rate:.6g}, and may "
                "not begin again (may_begin_again): look for what is not finite in the data or in the loss"
            )
        lost = Divergence(
            learning_rate=self.learning_rate,
            at=examples_seen,
            examples=examples_seen + sum(decay.end - decay.begin for decay in self.missed),
            steps=round(self.schedule.steps_to(examples_seen)) + sum(decay.steps for decay in self.missed),
        )
        again = replace(self._plan.schedule, learning_rate=LOWERED * self.learning_rate)
        self._state, self._handed_out = Adapted(again, diverged=(*self.diverged, lost)), 0
        return again

    def may_begin_again(self, examples_seen: int) -> bool:
        """Whether a run that diverges at so many examples may begin again at a lower rate.

        It may three times, and only after its first step.
        """
        return len(self.diverged) < MOST_DIVERGENCES and examples_seen > 0

    def begin(self) -> Schedule:
        """Forget what was done, and begin a training: by the plan's schedule, which is given."""
        self._state, self._handed_out = Adapted(self._plan.schedule), 0
        return self._plan.schedule

    def fingerprint(self) -> str:
        """Of what decides how it is corrected."""
        decides = (self._plan.to_json(), self._forecast.to_json(), self._chance)
        return hashlib.sha256(repr(decides).encode()).hexdigest()[:16]

    def state(self) -> Adapted:
        """Where it is: a record to go on from with `load_state`."""
        return self._state

    def load_state(self, state: Adapted) -> None:
        """Go on from where another was."""
        self._state, self._handed_out = state, 0

    def _best_beginning(self, earliest: int) -> int:
        """The first beginning from which a decay is likely enough to end at the loss; the latest if none is."""
        earliest = max(earliest, self._warmup, self._plan.schedule(0))
        latest = math.floor((1.0 - COOLDOWN) * self._longest)
        begins = np.unique(np.round(np.minimum(earliest * LOOK_AHEAD_RATIO ** np.arange(LOOK_AHEAD), latest)))
        begins = begins[begins >= min(earliest, latest)]
        chances = np.mean(self._ends(begins.tolist())[1:] <= math.log(self.loss), axis=0)
        likely = np.flatnonzero(chances >= self._chance)
        return int(begins[likely[0]]) if len(likely) else latest

    def _ends(self, begins: list[float]) -> np.ndarray:
        """Log losses at the ends of decays, (1 + draws, k): e."""
        law, rate = self._forecast.law, self.learning_rate
        courses = []
        for begin in begins:
            schedule = self._until(round(begin))
            switches = [float(segment.start_examples) for segment in schedule.segments]
            edges = [*switches, *np.geomspace(1.0, begin, 16), *np.linspace(begin, schedule.examples, 7)[1:]]
            courses.append(course_along(schedule, rate, np.unique(edges), delay=law.delay))
        ends = np.stack([found[:, -1] for found in law.losses_along(courses)], axis=1)
        scatter = OWN_SHARE * law.scatter(seed=1)[:, None]
        return np.asarray(ends + scatter + self._above()[:, None])

    def _above(self) -> np.ndarray:
        """r, (1 + draws,); of decays that missed as well."""
        law, curve = self._forecast.law, self._state.curve
        last = curve.examples[-1] if curve.examples else 0
        late = [(n, loss) for n, loss in zip(curve.examples, curve.losses, strict=True) if n > 0 and n * LATEST >= last]
        above = np.zeros(1 + law.draws)
        if late:
            at = np.array([n for n, _ in late], dtype=np.float64)
            edges = np.unique(np.concatenate([[0.0], np.geomspace(1.0, at[-1], 24), at]))
            course = course_along(self._until(int(at[-1])), self.learning_rate, edges, delay=law.delay)
            (found,) = law.losses_along([course])
            predicted = found[:, np.searchsorted(edges, at) - 1]
            above = np.mean(np.log([loss for _, loss in late]) - predicted, axis=1)
        # Each decay was predicted with what the ones before had taught, so their lessons add up.
        return np.asarray(above + sum(max(0.0, math.log(decay.loss / decay.predicted)) for decay in self.missed))

    def _until(self, begin: int) -> Schedule:
        """The run with a decay from there on, by whole batches."""
        begin = self._whole(begin)
        horizon = max(begin + 2, self._handed_out, math.ceil(begin / (1.0 - COOLDOWN)))
        segments = tuple(segment for segment in self._plan.schedule.segments if segment.start_examples < horizon)
        horizon = self._whole(horizon)
        warmup = min(self._warmup, begin)
        points = {0: 0.0 if warmup else 1.0, warmup: 1.0, begin: 1.0, horizon: 0.0}
        rates = LearningRateSchedule(tuple(points), tuple(points.values()))
        return Schedule(segments, horizon, self.learning_rate, rates)

    def _whole(self, examples: int) -> int:
        """Examples after which a step ends, at least so many."""
        segments, seen = self._plan.schedule.segments, 0
        ends = [segment.start_examples for segment in segments[1:]] + [examples]
        for segment, end in zip(segments, ends, strict=True):
            left = min(end, examples) - seen
            if left > 0:
                seen += math.ceil(left / segment.batch_size) * segment.batch_size
        return seen

    def _decay_from(self, begin: int) -> bool:
        before = self.schedule
        self._state = replace(self._state, schedule=self._until(begin))
        return self.schedule != before

    @property
    def _warmup(self) -> int:
        rates = self._plan.schedule.learning_rate_schedule
        return 0 if rates is None else rates.warmup_examples

    @property
    def _longest(self) -> float:
        return LONGEST * self._plan.schedule.examples


def _check_forecast(plan: Plan, forecast: Forecast) -> None:
    again = loss_again(plan, forecast)
    if again is None or not is_same_loss(again, plan):
        raise ValueError(
            f"forecast must be the one that the plan was made from, and predicts another loss at the plan's end: "
            f"{again}, not {plan.loss}"
        )

"""A probe under way."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from batchopt.probing.branches import Leg, SharedTask, run_legs
from batchopt.probing.budget import SHARES, price_of
from batchopt.probing.journal import Journal, Part
from batchopt.probing.task import TrainingTask
from batchopt.step_cost import StepCost

Progress = Callable[[str, float], None]


TIME_WAS_UP = "the time was up"


class StopProbe(Exception):  # noqa: N818  (it is not an error: the probe ends with what it has)
    """The probe cannot go on; its report says why."""


@dataclass(slots=True)
class Session:
    """What the parts of a probe share.

    Attributes:
        task: what is probed.
        shared: the same, as workers get it.
        journal: finished parts on disk.
        seed: of everything random.
        progress: called as parts finish.
        deadline: time.time() at which the probe stops; None for never.
        budget: examples of the whole probe, once known.
        price: what a step counts for at each batch size, in the budget's examples.
        parts: finished parts by name, in order.
        notes: what went otherwise than its user thought, in sentences.
        decisions: what was decided on the way, and why, in sentences.
        reference: name of the part that holds the reference run; None until it is known.
        prior: the task's, unless it turned out to be wrong.
    """

    task: TrainingTask
    shared: SharedTask
    journal: Journal
    seed: int
    progress: Progress
    deadline: float | None
    budget: int = 0
    price: StepCost = field(default_factory=lambda: price_of(0.0))
    parts: dict[str, Part] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    decisions: list[str] = field(default_factory=list)
    reference: str | None = None
    prior: tuple[int, float] | None = None

    @property
    def initial_loss(self) -> float | None:
        """Mean training loss at initialisation, once it is measured."""
        return next((part.initial_loss for part in self.parts.values() if part.initial_loss is not None), None)

    def warm_up(self, examples: int) -> None:
        """Let all runs warm up over so many examples, where the task does not say how."""
        if not self.task.warmup_examples:
            self.task = self.shared.task = replace(self.task, warmup_examples=examples)

    def do(self, name: str, work: Callable[[], Part]) -> Part:
        """The result of a part: from the journal, or worked out."""
        part = self.journal.do(name, work)
        self._add(name, part)
        return part

    def run(self, legs: Sequence[Leg]) -> list[Part]:
        """The results of legs: from the journal, or run in parallel.

        Raises:
            StopProbe: the time was up before all of them had finished.
        """
        results = run_legs(self.shared, [replace(leg, deadline=self.deadline) for leg in legs], self.journal)
        for leg, part in zip(legs, results, strict=True):
            self._add(leg.name, part)
        if any(part.branch is not None and part.branch.outcome == "stopped" for part in results):
            raise StopProbe(TIME_WAS_UP)
        return results

    def left_of(self, *names: str) -> float:
        """Examples that are left of the shares of some parts together."""
        spent = sum(part.spending.of_budget for part in self.parts.values() if part.spending.part in names)
        return max(0.0, sum(SHARES[name] for name in names) * self.budget - spent)

    def check_time(self) -> None:
        """End the probe if its time is up."""
        if self.deadline is None:
            return
        late, group = time.time() > self.deadline, self.journal.group
        if late if group is None else group.any_says(late):
            raise StopProbe(TIME_WAS_UP)

    def _add(self, name: str, part: Part) -> None:
        self.parts[name] = part
        spent = sum(part.spending.of_budget for part in self.parts.values())
        self.progress(part.spending.part, min(1.0, spent / self.budget) if self.budget else 0.0)

"""What a probe has finished, kept on disk so that the same probe goes on where it stopped.

A journal is a folder: one JSON file per finished part, written whole or not at all, beside the snapshots that later
parts continue from. A probe is a deterministic sequence of parts with fixed names, so resuming is: look the part up,
run it only if it is not there. Whoever runs a part writes its file, so that a part which finished in a worker is kept
even if the parent was killed meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from batchopt._codec import Record, Upgrade, gained, read_text
from batchopt.errors import RecordError
from batchopt.evidence import Branch, Spending
from batchopt.noise_scale import NoiseScale
from batchopt.planning.goal import Goal
from batchopt.probing.aim import Aim
from batchopt.probing.distributed import DefaultGroup
from batchopt.step_cost import StepCost

_IDENTITY = "identity.json"


@dataclass(frozen=True, slots=True)
class Identity(Record):
    """What a probe was asked: a journal of another probe is refused."""

    SCHEMA: ClassVar[str] = "batchopt.probe_identity/5"
    OLDER: ClassVar[Mapping[str, Upgrade]] = {
        "batchopt.probe_identity/3": gained("goal", "metrics"),
        "batchopt.probe_identity/4": gained("metrics"),
    }
    REMEDY_OF_OLDER: ClassVar[str] = "that probe counted its steps in another way: delete the folder to begin anew"

    examples: int | None
    seconds: float | None
    seed: int
    learning_rate: float | None
    batch_sizes: tuple[int, int] | None
    population: int
    parameters: int
    per_step: float = 0.0
    prior: tuple[int, float] | None = None
    goal: Goal | None = None
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Part(Record):
    """The result of one part of a probe. Only what the part measures is filled in.

    Attributes:
        spending: what it took.
        branch: the run so far, or the cooldown.
        examples_seen: by the run at the end of the part, whose state is its snapshot.
        noise_scale: one reading.
        step_cost: measured seconds per step.
        initial_loss: mean training loss at initialisation.
        learning_rate: the highest worth trying.
        step_seconds: median seconds of the part's steps; None where there were few, or other runs beside them.
        aim: what is known of the planned run.
        failure: why the part has no result, or what ended it, in words.
    """

    SCHEMA: ClassVar[str] = "batchopt.probe_part/3"
    OLDER: ClassVar[Mapping[str, Upgrade]] = {"batchopt.probe_part/2": gained("step_seconds", "aim")}
    REMEDY_OF_OLDER: ClassVar[str] = "that probe had no cooldowns and cannot go on: delete the folder to begin anew"

    spending: Spending
    branch: Branch | None = None
    examples_seen: int = 0
    noise_scale: NoiseScale | None = None
    step_cost: StepCost | None = None
    initial_loss: float | None = None
    learning_rate: float | None = None
    step_seconds: float | None = None
    aim: Aim | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Journal:
    """A probe's folder.

    Attributes:
        folder: where.
        group: processes that probe together, all of which make every call; the first one's word counts, and it alone
            writes. None for one that probes alone.
    """

    folder: Path
    group: DefaultGroup | None = None

    @classmethod
    def open(cls, folder: Path, identity: Identity, group: DefaultGroup | None = None) -> Journal:
        """Open or begin the journal of one probe.

        Raises:
            RecordError: the folder holds the journal of another probe, or of another version.
        """
        journal = cls(folder, group)
        journal._of_first(lambda: journal._begin(identity))
        return journal

    def _begin(self, identity: Identity) -> str:
        self.folder.mkdir(parents=True, exist_ok=True)
        header = self.folder / _IDENTITY
        # Without a finished part there is nothing to lose: the probe before was refused, or just begun.
        if self._parts() and Identity.load(header) != identity:
            raise RecordError(
                f"{self.folder} keeps the finished parts of another probe (other budget, seed, goal, task or bounds): "
                "delete the folder to begin anew, or repeat the call that began it"
            )
        identity.save(header)
        return ""

    def _of_first(self, make: Callable[[], str]) -> str:
        return make() if self.group is None else self.group.from_first(make)

    def finished(self, name: str) -> Part | None:
        """The result of a part, or None if it has not finished."""
        text = self._of_first(lambda: self._text(name))
        return Part.from_json(text) if text else None

    def _text(self, name: str) -> str:
        file = self.folder / f"{name}.json"
        return read_text(file) if file.exists() else ""

    def do(self, name: str, work: Callable[[], Part]) -> Part:
        """The result of a part: looked up, or worked out and kept."""
        part = self.finished(name)
        if part is None:
            part = self.keep(name, work())
        return part

    def keep(self, name: str, part: Part) -> Part:
        """Write the result of a part, and give it as it was written."""
        return Part.from_json(self._of_first(lambda: self._write(name, part)))

    def _write(self, name: str, part: Part) -> str:
        part.save(self.folder / f"{name}.json")
        return part.to_json()

    def seconds_spent(self) -> float:
        """Wall-clock time of all finished parts."""
        return float(self._of_first(lambda: repr(sum(Part.load(file).spending.seconds for file in self._parts()))))

    def _parts(self) -> list[Path]:
        return [file for file in self.folder.glob("*.json") if file.name != _IDENTITY]

    def snapshot(self, name: str) -> Path:
        """Where the state of a run is kept under a name."""
        return self.folder / f"{name}.snapshot"

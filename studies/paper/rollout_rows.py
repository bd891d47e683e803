"""Rows of table 1 for reinforcement learning, from the sweeps and readings that are kept beside the studies."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from rollout_sweep import critical_batch_sizes

from batchopt.tradeoff import TradeoffFit

STUDIES = Path(__file__).parents[1]
CERTAIN = 1.5
"""An interval that reaches further than this factor gets a question mark, as in the other rows."""


@dataclass(frozen=True, slots=True)
class Game:
    """A game of the paper, and ours that is most like it.

    Attributes:
        name: of ours.
        folder: of its study.
        file: its name in the study's files.
        unit: what the row counts, in one example.
        paper: the paper's critical batch size at the start and over the run, noise scale at the start and over the run.
        result: its name among the results of the whole flow; None where that was not run.
        reading_unit: what the row counts, in one of what the study counts noise scales in.
    """

    name: str
    folder: str
    file: str
    unit: int
    paper: str
    result: str | None = None
    reading_unit: int = 1


ATARI = "Atari, in frames: 100 to 1,000, 400 to 8,000; 100 to 1,000, 1,000 to 20,000"
DOTA = "Dota 1v1: 50,000, 3,000,000; 100,000, 300,000"
DOTA_5V5 = "Dota 5v5: -, above 8,000,000; 100,000, 24,000,000"

GAMES = (
    Game("A2C on CartPole, in steps", "classic_control", "cartpole", 16, ATARI),
    Game("A2C on Breakout, in frames", "atari", "breakout", 20, ATARI, reading_unit=4),
    Game("PPO on CartPole, in episodes", "ppo", "cartpole", 1, DOTA, "task"),
    Game("PPO on Pendulum, in steps", "ppo", "pendulum", 200, f"{DOTA}; {DOTA_5V5}", "pendulum"),
    Game("PPO on LunarLander, in episodes", "ppo", "lander", 1, DOTA, "lander"),
)


def rollout_rows() -> list[str]:
    """A row for every game, with the columns of `figures.table`; noise scales are in the optimizer's metric."""
    rows = []
    for game in GAMES:
        folder = STUDIES / game.folder
        runs = [json.loads(line) for line in (folder / f"sweep-{game.file}.jsonl").read_text().splitlines()]
        scores = sorted(map(float, runs[0]["reached"]))
        fits = list(critical_batch_sizes(runs, scores).values())
        readings = [
            _reading(*reading["preconditioned"], game.reading_unit)
            for reading in json.loads((folder / "noise.json").read_text())
            if reading["game"].lower() == game.file and "preconditioned" in reading
        ]
        rows.append(
            f"| {game.name} | {_interval(fits[0], game.unit)}, {_interval(fits[-1], game.unit)} "
            f"| {readings[0]}, {readings[-1]} | - | {_forecast(game)} | {game.paper} |"
        )
    return rows


def _reading(value: float, low: float, high: float | None, unit: int) -> str:
    """A noise scale, or what it is above."""
    is_bound = high is None and value == low
    return f"{'above ' if is_bound else ''}{_number(unit * value)}"


def _interval(fit: TradeoffFit, unit: int) -> str:
    found = fit.critical_batch_size
    is_certain = found.low > 0 and found.high <= CERTAIN * found.value and found.value <= CERTAIN * found.low
    value, low, high = (_number(unit * end) for end in (found.value, found.low, found.high))
    return f"{value}{'' if is_certain else '?'} ({low} to {high})"


def _forecast(game: Game) -> str:
    file = STUDIES / game.folder / f"result-{game.result}.json"
    if game.result is None or not file.exists():
        return "-"
    level: dict[str, Any] = json.loads(file.read_text())["forecast"][-1]
    found = level["critical_batch_size"]
    if found is None:
        return "refused"
    value, low, high = (_number(game.unit * (math.inf if end is None else end)) for end in found)
    return f"{value} ({low} to {high})"


def _number(value: float) -> str:
    """Two digits."""
    if math.isinf(value):
        return "inf"
    return f"{float(f'{value:.2g}'):,g}"

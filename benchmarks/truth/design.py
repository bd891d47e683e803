"""A random design over five hyperparameters: batch size, learning rate, weight decay, momentum (or beta2) and width.

Runs of three problems with everything drawn at once, from which a search over more than two parameters is replayed by
nearest neighbour. Each run is kept as it ends, so that an interrupted design goes on where it stopped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed

from batchopt import StepCost, TrainingTask
from batchopt.errors import NonFiniteLossError
from batchopt.probing.evaluation import evaluation_points
from batchopt.probing.run import TrainingRun
from truth import models
from truth.curves import FOLDER
from truth.problems import PROBLEMS, make
from truth.tradeoff import sweep_of
from truth.training import EVALUATION_RATIO, FIRST_EVALUATION_STEPS, ended, whole_steps

RUNS = 500
PRICE = StepCost(per_step=64.0, per_example=1.0)
MOST_COSTS = 4.0
"""A run ends after this many times the cost of the best configuration of the problem's sweep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """What is drawn for one problem; learning rate, weight decay and width log-uniformly.

    Attributes:
        model: by width.
        optimizer: by parameters, learning rate, weight decay and momentum (or 1 - beta2).
        learning_rate: range.
        memory: the name of the parameter that says how long the optimizer remembers: "momentum", drawn uniformly, or
            "one_minus_beta2", drawn log-uniformly.
        memory_range: its range.
    """

    model: Callable[[int], torch.nn.Module]
    optimizer: Callable[[Any, float, float, float], torch.optim.Optimizer]
    learning_rate: tuple[float, float]
    memory: str
    memory_range: tuple[float, float]
    weight_decay: tuple[float, float] = (1e-6, 1e-1)
    width: tuple[int, int] = (16, 128)


@dataclass(frozen=True, slots=True)
class DesignRun:
    """One run: what was drawn, and the curve."""

    batch_size: int
    learning_rate: float
    weight_decay: float
    memory: float
    width: int
    outcome: str
    examples: tuple[int, ...]
    losses: tuple[float, ...]


def _sgd(parameters: Any, lr: float, weight_decay: float, momentum: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay, momentum=momentum)


def _adamw(parameters: Any, lr: float, weight_decay: float, one_minus_beta2: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, betas=(0.9, 1.0 - one_minus_beta2))


DESIGNS = {
    "digits_mlp": Design(
        model=models.digits_mlp, optimizer=_sgd, learning_rate=(0.03, 4.0), memory="momentum", memory_range=(0.0, 0.95)
    ),
    "mnist_cnn_adam": Design(
        model=models.mnist_cnn, optimizer=_adamw, learning_rate=(0.0005, 0.06),
        memory="one_minus_beta2", memory_range=(0.001, 0.3),
    ),
    "lstm": Design(
        model=models.CharacterLSTM, optimizer=_adamw, learning_rate=(0.001, 0.25),
        memory="one_minus_beta2", memory_range=(0.001, 0.3),
    ),
}  # fmt: skip


def draw(name: str, count: int = RUNS) -> list[dict[str, Any]]:
    """The settings of a design."""
    design, rng = DESIGNS[name], np.random.default_rng(0)
    low, high = design.memory_range
    drawn = []
    for _ in range(count):
        memory = rng.uniform(low, high) if design.memory == "momentum" else _log_uniform(rng, low, high)
        drawn.append(
            {
                "batch_size": int(rng.choice(PROBLEMS[name].batch_sizes)),
                "learning_rate": _log_uniform(rng, *design.learning_rate),
                "weight_decay": _log_uniform(rng, *design.weight_decay),
                "memory": float(memory),
                "width": 8 * round(_log_uniform(rng, *design.width) / 8),
            }
        )
    return drawn


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def best_cost(name: str) -> float:
    """Cost of the best configuration of the problem's sweep, to its last loss."""
    loss = PROBLEMS[name].losses[-1]
    found = sweep_of(name).examples_to(loss)
    return min(float(np.exp(np.mean(np.log(values)))) / size * PRICE(size) for (size, _), values in found.items())


def run_design(name: str, index: int, setting: dict[str, Any], most_cost: float) -> DesignRun:
    """Train one drawn setting until it reaches the problem's last loss, diverges, or costs too much."""
    torch.set_num_threads(1)
    design, size = DESIGNS[name], setting["batch_size"]
    base, _ = make(name)
    task = TrainingTask(
        model=lambda: design.model(setting["width"]),
        data=base.data,
        loss=base.loss,
        optimizer=lambda parameters, lr: design.optimizer(
            parameters, lr, setting["weight_decay"], setting["memory"]
        ),
        before_step=base.before_step,
        device="cpu",
    )  # fmt: skip
    run = TrainingRun(task, learning_rate=setting["learning_rate"], seed=1_000 + index)
    first = max(FIRST_EVALUATION_STEPS * size, 64)
    most = max(first, round(most_cost / PRICE(size) * size))
    curve: list[tuple[int, float]] = []
    outcome = "stopped"
    try:
        for until in whole_steps(evaluation_points(most, first=first, ratio=EVALUATION_RATIO), size):
            while run.examples_seen < until:
                run.step(size)
            curve.append((run.examples_seen, run.evaluate()))
            end = ended([loss for _, loss in curve], run.examples_seen, PROBLEMS[name].losses[-1], None)
            if end is not None:
                outcome = end
                break
    except NonFiniteLossError:
        outcome = "diverged"
    examples, losses = zip(*[point for point in curve if point[1] > 0], strict=True)
    return DesignRun(**setting, outcome=outcome, examples=examples, losses=losses)


def make_design(name: str, *, workers: int = 1) -> list[DesignRun]:
    """Run what the design of a problem lacks, and pack its curves."""
    journal = Path(__file__).parent / "out" / f"{name}-design.jsonl"
    journal.parent.mkdir(exist_ok=True)
    done: dict[int, DesignRun] = {}
    if journal.exists():
        for line in journal.read_text(encoding="utf-8").splitlines():
            if line.endswith("}"):  # an interrupted write leaves part of a line
                kept = json.loads(line)
                fields = {key: tuple(value) if isinstance(value, list) else value for key, value in kept.items()}
                done[fields.pop("index")] = DesignRun(**fields)
    most = MOST_COSTS * best_cost(name)
    left = [(i, setting) for i, setting in enumerate(draw(name)) if i not in done]
    print(f"{name}: {len(done)} runs done, {len(left)} to go", flush=True)

    def one(index: int, setting: dict[str, Any]) -> tuple[int, DesignRun]:
        return index, run_design(name, index, setting, most)

    for index, run in Parallel(n_jobs=workers, return_as="generator_unordered")(delayed(one)(*job) for job in left):
        done[index] = run
        with journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"index": index, **asdict(run)}) + "\n")
    runs = [done[i] for i in sorted(done)]
    pack_design(runs, FOLDER / f"{name}-design.npz")
    return runs


def pack_design(runs: list[DesignRun], path: Path) -> None:
    """Write a design as arrays."""
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("wb") as file:
        np.savez_compressed(
            file,
            batch_size=np.array([run.batch_size for run in runs], np.int32),
            learning_rate=np.array([run.learning_rate for run in runs]),
            weight_decay=np.array([run.weight_decay for run in runs]),
            memory=np.array([run.memory for run in runs]),
            width=np.array([run.width for run in runs], np.int32),
            outcome=np.array([run.outcome for run in runs]),
            points=np.array([len(run.examples) for run in runs], np.int32),
            examples=np.concatenate([np.array(run.examples, np.int64) for run in runs]),
            losses=np.concatenate([np.array(run.losses, np.float32) for run in runs]),
        )
    unfinished.replace(path)


def unpack_design(name: str) -> list[DesignRun]:
    """The runs of a design, as it is packed in the repository."""
    with np.load(FOLDER / f"{name}-design.npz", allow_pickle=False) as archive:
        columns = {key: archive[key] for key in archive.files}
    ends = np.cumsum(columns["points"])
    runs = []
    for i, (end, count) in enumerate(zip(ends, columns["points"], strict=True)):
        part = slice(end - count, end)
        runs.append(
            DesignRun(
                int(columns["batch_size"][i]),
                float(columns["learning_rate"][i]),
                float(columns["weight_decay"][i]),
                float(columns["memory"][i]),
                int(columns["width"][i]),
                str(columns["outcome"][i]),
                tuple(map(int, columns["examples"][part])),
                tuple(map(float, columns["losses"][part])),
            )
        )
    return runs

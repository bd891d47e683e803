"""One small flow, run by the commands themselves, that the tests of the commands read."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from made_once import folder_of_session, once

from batchopt.cli.main import main
from batchopt.probing.evaluation import evaluation_points

TASK = """
import torch
from torch import nn
import batchopt

generator = torch.Generator().manual_seed(3)
x = torch.randn(600, 12, generator=generator)
y = (x @ torch.randn(12, 4, generator=generator) + 0.5 * torch.randn(600, 4, generator=generator)).argmax(1)

task = batchopt.TrainingTask(
    model=lambda: nn.Linear(12, 4),
    data=(x, y),
    eval_data=(x[:200], y[:200]),
    loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none"),
    optimizer=lambda parameters, lr, weight_decay=0.0: torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay),
    device="cpu",
    search={"weight_decay": (1e-6, 1e-2, "log")},
)
not_a_task = 3
"""

GOAL = 0.4


@dataclass(frozen=True)
class Flow:
    """Files of a finished probe, forecast and plan, which are not to be written to."""

    folder: Path

    def __getattr__(self, name: str) -> str:
        return str(self.folder / f"{name}.json")

    @property
    def told(self) -> dict[str, Any]:
        """What `forecast --loss 0.45 --json` has told."""
        told: dict[str, Any] = json.loads((self.folder / "told.json").read_text())
        return told

    @property
    def task(self) -> str:
        return f"{self.folder / 'my_task.py'}:task"


@pytest.fixture(scope="session")
def flow() -> Flow:
    torch.set_num_threads(1)
    session = folder_of_session()
    assert session is not None
    flow = Flow(session / "flow")
    once(flow.folder, lambda: _run(flow))
    return flow


def _run(flow: Flow) -> None:
    flow.folder.mkdir(exist_ok=True)
    (flow.folder / "my_task.py").write_text(textwrap.dedent(TASK))
    assert main(["probe", flow.task, "--examples", "40000", "-o", flow.probe]) == 0
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["forecast", flow.probe, "-o", flow.forecast, "--loss", "0.45", "--json"]) == 0
    (flow.folder / "told.json").write_text(out.getvalue())
    plan = ["plan", flow.forecast, "--reach-loss", str(GOAL), "--least", "balanced", "--learning-rate-schedule", "wsd"]
    assert main([*plan, "-o", flow.plan, "--schedule", flow.schedule]) == 0


@pytest.fixture
def few_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial fits the law after each of its evaluations, of which there are four times as many else."""
    monkeypatch.setattr("batchopt.training.loop.evaluation_points", functools.partial(evaluation_points, ratio=2.0))

"""The models here are tiny: a second thread costs more than it brings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import answered


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def two_processes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two_processes")


@pytest.fixture(scope="session")
def two_processes(two_processes_folder: Path) -> dict[str, dict[str, Any]]:
    """What they answer, and one that is alone."""
    from training.test_adaptive import plan_for_training

    plan, forecast = plan_for_training()
    plan.save(two_processes_folder / "plan.json")
    forecast.save(two_processes_folder / "forecast.json")
    return answered(two_processes_folder, "training.torchrun_script", "training.two_ranks")

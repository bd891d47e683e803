"""Settings of all tests of probing, and what two processes answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from launching import answered

# The problems are tiny: a second thread gains nothing and waits for the first wherever tests run side by side.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two_processes")
    return answered(folder, "probing.two_processes", "probing.sharded_processes")

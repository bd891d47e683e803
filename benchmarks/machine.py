"""The machine that a benchmark ran on, and how its result is kept."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "scipy")


def machine() -> dict[str, Any]:
    """What goes to every result beside its figures; JSON types only."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads(),
        "gpu": gpu_model(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "date": datetime.now(UTC).date().isoformat(),
    }


def cpu_model() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def threads() -> int:
    """Threads that torch computes with."""
    import torch

    return torch.get_num_threads()


def gpu_model() -> str | None:
    """The CUDA device's name; None where there is none."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def save(path: str | Path, result: Any) -> None:
    """Write a result as JSON: whole, or not at all.

    Args:
        path: its folder is made where it is missing.
        result: JSON types only; NaN and infinity are refused, since JSON has none.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    path = Path(path)
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

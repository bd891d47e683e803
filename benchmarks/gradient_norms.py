"""What per-example gradient norms cost, ours and our peers', against a plain forward and backward pass.

Every method is checked against one backward pass per example, then timed in alternation with the plain pass in a
process of its own (plain too, against itself: what its row is off 1 by is chance), then run in a fresh process for its
peak memory. Results are kept after every row: a run that was
interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import gradient_norm_table as table
import torch
from gradient_norm_methods import METHODS, OURS, one_at_a_time, worst_error
from gradient_norm_table import Row
from machine import machine, save
from models import MODELS, Batch, Workload
from pairs import alternate, quartiles
from torch import nn

RESULTS = Path(__file__).parent / "results"
LONGEST_STEP = 40.0
"""Seconds; memory is not measured where a step would take longer."""
LONGEST_JOB = 400.0
"""Seconds of a process."""
CHECKED = 5
"""Examples that are compared with one backward pass each."""


class Sizes(NamedTuple):
    """Examples of a batch."""

    time: int
    memory: int
    """Such that plain needs 500 MB."""


SIZES = {
    "autoencoder": Sizes(1024, 24_576),
    "cnn": Sizes(64, 448),
    "resnet18": Sizes(16, 80),
    "gpt": Sizes(16, 56),
    "lstm": Sizes(16, 176),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """How a run measures.

    Attributes:
        device: "cpu" or "cuda".
        threads: of torch on the CPU.
        quick: tiny batches and few repetitions, to see that all works; its numbers mean nothing.
    """

    device: str
    threads: int
    quick: bool

    def sizes(self, model: str) -> Sizes:
        if self.quick:
            return Sizes(6, 8)
        # A GPU is idle in between where the batch is small.
        memory = SIZES[model].memory
        return Sizes(memory, 2 * memory) if self.device == "cuda" else SIZES[model]

    def seconds(self, method: str) -> float:
        """Of timing a method."""
        if self.quick:
            return 0.2
        return 12.0 if method in OURS else 6.0

    @property
    def pairs(self) -> tuple[int, int]:
        """Fewest and most pairs of a plain and an instrumented step."""
        return (2, 2) if self.quick else (3, 201)


def time_row(row: Row, settings: Settings) -> Row:
    """Error and time of a method; to be run in a process of its own."""
    workload = _workload(row.model, settings)
    step = METHODS[row.method].make_step(workload, row.chunk)
    batch = _batch(workload, settings.sizes(row.model).time, settings)
    error = _error(workload, row.method, settings)
    if not math.isfinite(error):
        raise ValueError("norms or mean gradient are not finite, or not of the model's shapes")
    plain_step = METHODS["plain"].make_step(workload, None)
    pairs = alternate(plain_step, step, batch, seconds=settings.seconds(row.method), pairs=settings.pairs)
    plain, ours = zip(*pairs, strict=True)
    large = None
    if row.method in OURS:
        batch_of_memory = _batch(workload, settings.sizes(row.model).memory, settings)
        taken = alternate(plain_step, step, batch_of_memory, seconds=settings.seconds(row.method), pairs=settings.pairs)
        large = quartiles([second / first for first, second in taken])
    return replace(
        row,
        batch=len(batch[0]),
        chunk=getattr(step, "chunk", None),
        error=error,
        pairs=len(pairs),
        plain_seconds=statistics.median(plain),
        seconds=statistics.median(ours),
        ratio=quartiles([second / first for first, second in pairs]),
        large_ratio=large,
    )


def memory_row(row: Row, settings: Settings) -> Row:
    """Peak memory of a method above what the imports took; to be run in a fresh process.

    A step of a model of two weights comes before, as it loads what is loaded when first used.
    """
    device = torch.device(settings.device)
    method = METHODS[row.method]
    tiny = Workload(nn.Sequential(nn.Linear(1, 1)).to(device), lambda model, batch: model(batch[0])[:, 0], _ones)
    method.make_step(tiny, 2)(tuple(leaf.to(device) for leaf in _ones(2, 0)))
    before = _peak_bytes(device)
    workload = _workload(row.model, settings)
    step = method.make_step(workload, row.chunk)
    batch = _batch(workload, settings.sizes(row.model).memory, settings)
    for _ in range(2):
        step(batch)
    return replace(row, memory_batch=len(batch[0]), memory_bytes=_peak_bytes(device) - before)


def _error(workload: Workload, method: str, settings: Settings) -> float:
    """Worst relative error, with the full precision of float32 on a GPU too."""
    precise = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    batch = _batch(workload, CHECKED, settings)
    error = worst_error(METHODS[method].make_step(workload, CHECKED)(batch), one_at_a_time(workload, batch))
    torch.backends.cudnn.allow_tf32 = precise
    return error


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not only ru_maxrss: a child inherits there the peak of the process that started it.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _workload(model: str, settings: Settings) -> Workload:
    workload = MODELS[model]()
    return workload._replace(model=workload.model.to(settings.device))


def _batch(workload: Workload, size: int, settings: Settings) -> Batch:
    return tuple(leaf.to(settings.device) for leaf in workload.make_batch(size, 1))


def _ones(batch_size: int, _: int) -> Batch:
    return (torch.ones(batch_size, 1),)


JOBS = {"time": time_row, "memory": memory_row}


def measure(row: Row, settings: Settings) -> Row:
    """A row's time and memory, or its failure."""
    row = in_process("time", row, settings)
    if row.failure is not None:
        return row
    sizes = settings.sizes(row.model)
    step_seconds = (row.seconds or 0) * sizes.memory / sizes.time
    if step_seconds > LONGEST_STEP:
        return replace(row, memory_failure=f"not measured: a step would take about {step_seconds:.0f} s")
    after = in_process("memory", row, settings)
    return after if after.failure is None else replace(row, memory_failure=after.failure)


def in_process(job: str, row: Row, settings: Settings) -> Row:
    """Do a job in a fresh process; what it fails with becomes part of the row."""
    order = json.dumps({"job": job, "row": asdict(row), "settings": asdict(settings)})
    command = [sys.executable, str(Path(__file__).resolve()), "--job", order]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_JOB, check=False)
    except subprocess.TimeoutExpired:
        return replace(row, failure=f"took over {LONGEST_JOB:.0f} s")
    if done.returncode == 0:
        return Row.from_json(json.loads(done.stdout.splitlines()[-1]))
    lines = done.stderr.strip().splitlines()
    return replace(row, failure=lines[-1] if lines else f"ended with exit status {done.returncode}")


def do_job(order: dict[str, Any]) -> Row:
    """What a process was started for."""
    row = Row.from_json(order["row"])
    try:
        return JOBS[order["job"]](row, Settings(**order["settings"]))
    except ModuleNotFoundError as error:
        return replace(row, failure=f"not installed: {error.name} (see benchmarks/requirements.txt)")
    except Exception as error:
        return replace(row, failure=table.shortened(error))


def _prepare(settings: Settings) -> None:
    """Set up a process; what would fill the machine's memory fails instead."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(settings.threads)
    total = Path("/proc/meminfo")
    if settings.device == "cpu" and total.exists():
        most = int(total.read_text().split()[1]) * 1024 * 2 // 3
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def run(models: Sequence[str], methods: Sequence[str], settings: Settings, path: Path) -> list[Row]:
    """Measure what is not in the file yet, print the table, and keep it."""
    rows = {row.key: row for row in _kept(path, settings)}
    for model in models:
        for method in ("plain", *(name for name in methods if name != "plain")):
            wanted = Row.of(model, method, METHODS[method])
            if wanted.key in rows and rows[wanted.key].version == wanted.version:
                continue
            print(f"{model}: {method} ...", file=sys.stderr, flush=True)
            rows[wanted.key] = measure(wanted, settings)
            _save(path, _ordered(rows.values()), settings)
    ordered = _ordered(rows.values())
    print(f"{machine()['gpu'] if settings.device == 'cuda' else machine()['cpu']}, {settings.threads} threads")
    print(table.text(ordered))
    return ordered


def _ordered(rows: Iterable[Row]) -> list[Row]:
    models, methods = list(MODELS), list(METHODS)
    return sorted(rows, key=lambda row: (models.index(row.model), methods.index(row.method)))


def _kept(path: Path, settings: Settings) -> list[Row]:
    if not path.exists():
        return []
    result = json.loads(path.read_text())
    return [Row.from_json(row) for row in result["rows"]] if result["settings"] == asdict(settings) else []


def _save(path: Path, rows: Sequence[Row], settings: Settings) -> None:
    result = {
        "benchmark": "gradient_norms",
        "machine": machine(),
        "settings": asdict(settings),
        "rows": [asdict(row) for row in rows],
        "targets": [asdict(verdict) for verdict in table.verdicts(rows)],
    }
    save(path, result)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), help="plain always")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU")
    parser.add_argument("--quick", action="store_true", help="tiny batches, to see that all works")
    parser.add_argument("--out", type=Path, help="of the result; what it holds already is not measured again")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.job is not None:
        order = json.loads(options.job)
        _prepare(Settings(**order["settings"]))
        print(json.dumps(asdict(do_job(order))))
        return
    torch.set_num_threads(options.threads)
    settings = Settings(options.device, options.threads, options.quick)
    name = "gradient_norms" + ("_cuda" if options.device == "cuda" else "") + ("_quick" if options.quick else "")
    run(options.models, options.methods, settings, options.out or RESULTS / f"{name}.json")


if __name__ == "__main__":
    main()

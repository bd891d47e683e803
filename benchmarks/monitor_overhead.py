"""What a running noise scale costs in a training, and how near it is to the noise scale at the weights of its end.

A GPT and a CNN are trained with `NoiseScaleMonitor` in the loop. Then, at the weights reached, `measure_noise_scale`
gives the value to compare with, and steps of three kinds are timed in turn: without a monitor, with one that takes the
gradient's norm, and with one that takes the gradient in parts. The overhead is what the last two take longer, each
over the number of steps from one to the next. A run that was interrupted goes on from its last checkpoint.

    python benchmarks/monitor_overhead.py --steps 2000
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from machine import machine, save
from models import MODELS, Batch, Workload

from batchopt import NoiseScale, NoiseScaleMonitor, measure_noise_scale

RESULTS = Path(__file__).parent / "results"
LEVEL_WIDTH = 0.6
"""(high - low) / value of an interval of 30 % to both sides: `steps_needed` is told this."""
FRESH = 10_000_000
"""Seeds of batches that no training has seen begin here."""


class Setting(NamedTuple):
    """How a model is trained."""

    batch_size: int
    learning_rate: float


SETTINGS = {"gpt": Setting(8, 3e-4), "cnn": Setting(32, 1e-3)}


class Run:
    """A training that can be interrupted.

    Args:
        name: of the model.
        options: of the command line.
    """

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.setting = SETTINGS[name]
        if options.quick:
            self.setting = self.setting._replace(batch_size=4)
        self.device = torch.device(options.device)
        model, loss, make_batch = MODELS[name](seed=options.seed)
        self.workload = Workload(model.to(self.device), loss, make_batch)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=self.setting.learning_rate)
        self.monitor = NoiseScaleMonitor(model, loss, overhead=options.overhead, window=options.window)
        self.options = options
        self.seconds = 0.0
        self.curve: list[dict[str, float]] = []
        self._file = options.out.with_suffix(f".{name}.checkpoint")
        if self._file.exists():
            self._resume(torch.load(self._file, map_location=self.device, weights_only=True))

    def batch(self, seed: int) -> Batch:
        return tuple(leaf.to(self.device) for leaf in self.workload.make_batch(self.setting.batch_size, seed))

    def train(self) -> None:
        """To the end; the checkpoint stays until the run's figures are kept."""
        steps = self.options.steps
        while self.monitor.steps < steps:
            batch = self.batch(self.options.seed * FRESH // 10 + self.monitor.steps)
            begin = time.perf_counter()
            self.optimizer.zero_grad()
            loss = self.monitor.backward(batch)
            self.optimizer.step()
            self.seconds += time.perf_counter() - begin
            if self.monitor.steps % max(1, steps // 20) == 0:
                self._note(float(loss))

    def forget(self) -> None:
        """Drop the checkpoint."""
        self._file.unlink(missing_ok=True)

    def frozen(self) -> NoiseScale:
        """At the weights reached."""
        size = 64 if self.setting.batch_size > 8 else 32
        fresh = (
            tuple(leaf.to(self.device) for leaf in self.workload.make_batch(size, FRESH + k)) for k in range(10**6)
        )
        return measure_noise_scale(
            self.workload.model,
            self.workload.loss,
            fresh,
            relative_width=self.options.frozen_width,
            max_examples=self.options.frozen_examples,
        )

    def step_times(self, units: str) -> dict[str, list[float]]:
        """Seconds of steps without a monitor, with the norm, and in parts; three after each other, many times."""
        model, loss, _ = self.workload
        norm = NoiseScaleMonitor(model, loss, every=10**9)
        parts = NoiseScaleMonitor(model, loss, every=1, units=units)

        def plain(batch: Batch) -> torch.Tensor:
            value = loss(model, batch).mean()
            value.backward()
            return value

        kinds: dict[str, Callable[[Batch], torch.Tensor]] = {
            "plain": plain,
            "norm": norm.backward,
            "parts": parts.backward,
        }
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        warm_up = 3
        for repetition in range(warm_up + self.options.repetitions):
            batch = self.batch(2 * FRESH + repetition)
            for kind, backward in kinds.items():
                seconds = self._timed(backward, batch)
                if repetition >= warm_up:
                    times[kind].append(seconds)
        assert norm.failure is None
        assert parts.failure is None
        return times

    def _timed(self, backward: Callable[[Batch], torch.Tensor], batch: Batch) -> float:
        _wait(self.device)
        begin = time.perf_counter()
        self.optimizer.zero_grad()
        backward(batch)
        self.optimizer.step()
        _wait(self.device)
        return time.perf_counter() - begin

    def _note(self, loss: float) -> None:
        reading = self.monitor.reading
        if reading is not None:
            low, value, high = _numbers(reading)
            self.curve.append({"step": self.monitor.steps, "loss": loss, "low": low, "value": value, "high": high})
            print(f"  step {self.monitor.steps}: loss {loss:.3f}, noise scale {reading.batch_size}", flush=True)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.workload.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "monitor": self.monitor.state_dict(),
            "seconds": self.seconds,
            "curve": self.curve,
        }
        torch.save(state, self._file)

    def _resume(self, state: dict[str, Any]) -> None:
        self.workload.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.monitor.load_state_dict(state["monitor"])
        self.seconds, self.curve = state["seconds"], state["curve"]


def row(run: Run, name: str) -> dict[str, Any]:
    """All figures of a model."""
    options = run.options
    run.train()
    monitor, reading = run.monitor, run.monitor.reading
    assert reading is not None
    frozen = run.frozen()
    times = run.step_times("halves" if reading.method.startswith("the two halves") else "examples")
    plain, norm, parts = (statistics.median(times[kind]) for kind in ("plain", "norm", "parts"))
    share = (parts / plain - 1) / monitor.every + max(0.0, norm / plain - 1) / monitor.every_norm
    ratio = reading.batch_size.value / frozen.batch_size.value
    return {
        "model": name,
        "parameters": sum(parameter.numel() for parameter in run.workload.model.parameters()),
        "batch_size": run.setting.batch_size,
        "steps": monitor.steps,
        "seconds": round(run.seconds, 1),
        "method": reading.method,
        "every": monitor.every,
        "every_norm": monitor.every_norm,
        "plain_seconds": plain,
        "norm_ratio": norm / plain,
        "parts_ratio": parts / plain,
        "overhead": share,
        "within_budget": share <= options.overhead,
        "reading": _numbers(reading),
        "resolved": reading.resolved,
        "frozen": _numbers(frozen),
        "frozen_examples": frozen.examples,
        "ratio": ratio,
        "within_30_percent": abs(ratio - 1) <= 0.3,
        "steps_needed": min(1e12, monitor.steps_needed(LEVEL_WIDTH)),
        "curve": run.curve,
    }


def _numbers(noise: NoiseScale) -> list[float]:
    """Low, value and high; JSON has no infinity."""
    reading = noise.batch_size
    return [float(reading.low), float(reading.value), float(min(reading.high, 1e12))]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overhead", type=float, default=0.01)
    parser.add_argument("--window", type=int, default=None)
    parser.add_argument("--repetitions", type=int, default=60, help="of the timed steps")
    parser.add_argument("--frozen-width", type=float, default=0.15)
    parser.add_argument("--frozen-examples", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="few small steps, to see that all works")
    parser.add_argument("--out", type=Path, default=RESULTS / "monitor_overhead.json")
    options = parser.parse_args(arguments)
    if options.quick:
        options.steps, options.repetitions, options.frozen_examples = 24, 2, 64
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.models:
        print(name, flush=True)
        run = Run(name, options)
        rows.append(row(run, name))
        one = rows[-1]
        print(f"  overhead {one['overhead']:.2%}, reading / frozen {one['ratio']:.2f}", flush=True)
        settings = {key: value for key, value in vars(options).items() if key != "out"}
        save(options.out, {"machine": machine(), "settings": settings, "rows": rows})
        run.forget()


if __name__ == "__main__":
    main(sys.argv[1:])

"""The benchmark of the monitor: a tiny run, and one that is interrupted."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import monitor_overhead
import torch


def options(folder: Path, steps: int) -> argparse.Namespace:
    return argparse.Namespace(
        quick=True, device="cpu", seed=0, overhead=0.2, window=None, steps=steps, repetitions=1, frozen_width=0.5,
        frozen_examples=16, out=folder / "result.json",
    )  # fmt: skip


def test_a_tiny_run_gives_all_figures(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    threads = torch.get_num_threads()
    monitor_overhead.main(["--quick", "--models", "cnn", "--threads", "1", "--out", str(out)])
    torch.set_num_threads(threads)
    row = json.loads(out.read_text())["rows"][0]
    assert (row["model"], row["steps"], row["batch_size"]) == ("cnn", 24, 4)
    share = (row["parts_ratio"] - 1) / row["every"] + max(0.0, row["norm_ratio"] - 1) / row["every_norm"]
    assert row["overhead"] == share
    assert row["ratio"] == row["reading"][1] / row["frozen"][1]
    assert list(tmp_path.iterdir()) == [out]


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    first = monitor_overhead.Run("cnn", options(tmp_path, 4))
    first.train()
    again = monitor_overhead.Run("cnn", options(tmp_path, 4))
    assert again.monitor.steps == 4
    assert again.curve == first.curve
    assert again.monitor.reading == first.monitor.reading
    for ours, theirs in zip(again.workload.model.parameters(), first.workload.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)

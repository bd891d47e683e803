"""Frameworks in two processes follow the schedule as one does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from launching import call, together

for package in ("lightning.pytorch", "transformers", "accelerate"):
    pytest.importorskip(package)

SIZES = [8] * 13 + [16] * 13 + [32] * 9 + [17]
"""Of the whole schedule."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("frameworks")
    for ended in together(folder, call, "integrations.torchrun_frameworks", "in_one_of_two", folder):
        assert ended.code == 0, ended.err[-3_000:]
    from integrations import torchrun_frameworks

    torchrun_frameworks.main(folder)
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in ("0", "1", "alone")}


def test_lightning(answers: dict[str, Any]) -> None:
    alone, first, second = (answers[name]["lightning"] for name in ("alone", "0", "1"))
    assert alone["sizes"] == SIZES
    assert [a + b for a, b in zip(first["sizes"], second["sizes"], strict=True)] == SIZES
    assert first["steps"] == second["steps"] == alone["steps"] == len(SIZES)
    assert first["weight"] == second["weight"] == pytest.approx(alone["weight"], rel=1e-5)


def test_transformers_leaves_out_a_last_batch_that_does_not_divide(answers: dict[str, Any]) -> None:
    alone, first, second = (answers[name]["transformers"] for name in ("alone", "0", "1"))
    assert alone["sizes"] == SIZES
    assert first["sizes"] == second["sizes"] == [size // 2 for size in SIZES[:-1]]
    assert first["steps"] == len(SIZES) - 1
    # One step fewer, at the end of the decay, where the learning rate is all but zero.
    assert first["weight"] == second["weight"] == pytest.approx(alone["weight"], rel=2e-2)


def test_the_noise_scale_of_two_processes_is_that_of_one(answers: dict[str, Any]) -> None:
    alone, first, second = (answers[name]["noise"] for name in ("alone", "0", "1"))
    assert first == second
    assert first["value"] == pytest.approx(alone["value"], rel=0.35)
    assert alone["high"] < 2.0 * alone["low"]

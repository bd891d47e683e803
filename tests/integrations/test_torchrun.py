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


@pytest.mark.parametrize("framework", ["lightning plan", "accelerate"])
def test_a_plan_is_shared_equally_and_its_rate_is_taken(framework: str, answers: dict[str, Any]) -> None:
    alone, first, second = (answers[name][framework] for name in ("alone", "0", "1"))
    assert alone["sizes"] == SIZES
    assert first["sizes"] == second["sizes"] == [size // 2 for size in SIZES[:-1]]
    assert first["steps"] == len(SIZES) - 1
    # Of the same examples at the same rate, but for the last step, which moves the weight by 4 % of its distance.
    assert first["weight"] == second["weight"] == pytest.approx(alone["weight"], abs=0.04)
    assert alone["weight"] == pytest.approx(answers["alone"]["lightning"]["weight"], rel=1e-5)


def test_the_batch_of_a_loop_is_that_of_all_processes(answers: dict[str, Any]) -> None:
    priors = [answers[name]["accelerate"]["prior"] for name in ("alone", "0", "1")]
    assert priors == [[4, 0.7], [8, 0.7], [8, 0.7]]
    assert {answers[name]["accelerate"]["population"] for name in ("alone", "0", "1")} == {100}


def test_the_noise_scale_of_two_processes_is_that_of_one(answers: dict[str, Any]) -> None:
    alone, first, second = (answers[name]["noise"] for name in ("alone", "0", "1"))
    assert first == second
    assert first["value"] == pytest.approx(alone["value"], rel=0.35)
    assert alone["high"] < 2.0 * alone["low"]

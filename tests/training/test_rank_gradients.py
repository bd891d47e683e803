"""A data-parallel training of two processes, read by what each rank holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("two_ranks.py")


def trained(folder: Path, count: int) -> list[dict[str, Any]]:
    folder.mkdir()
    root = str(SCRIPT.parents[2])
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), str(rank), str(count)],
            cwd=root,
            env={"PYTHONPATH": root, "PATH": "", "OMP_NUM_THREADS": "1"},
        )
        for rank in range(count)
    ]
    codes = [process.wait(timeout=120) for process in processes]
    assert codes == [0] * count
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("ranks")
    return {count: trained(folder / str(count), count) for count in (1, 2)}


def test_two_ranks_are_the_two_halves_of_one_batch(answers: dict[int, list[dict[str, Any]]]) -> None:
    alone = answers[1][0]["whole"]
    first, second = (answer["whole"] for answer in answers[2])
    assert first == second
    assert first["failure"] is None
    for name in ("signal", "noise"):
        assert first[name] == pytest.approx(alone[name], rel=1e-6)
    assert first["group_size"] == 6


def test_the_training_is_that_of_one_process(answers: dict[int, list[dict[str, Any]]]) -> None:
    alone = answers[1][0]["whole"]
    for answer in answers[2]:
        assert answer["whole"]["weights"] == pytest.approx(alone["weights"], rel=1e-9)
        assert answer["whole"]["idle"] == alone["idle"]


def test_micro_batches_of_all_ranks_are_pooled(answers: dict[int, list[dict[str, Any]]]) -> None:
    """Of those before the reduction; each rank alone gives a reading, and both together their mean."""
    alone = answers[1][0]["accumulated"]
    first, second = (answer["accumulated"][0] for answer in answers[2])
    assert (first["signal"], first["noise"]) == (second["signal"], second["noise"])
    for name in ("signal", "noise"):
        mean = (alone[0][name] + alone[1][name]) / 2
        # The sum over ranks is of gradients divided by three, in steps of 12 and not 18 examples.
        assert first[name] == pytest.approx(mean, rel=1e-6)


def test_a_loop_that_adds_up_by_itself_is_read_as_one_process_that_accumulates(
    answers: dict[int, list[dict[str, Any]]],
) -> None:
    alone = answers[1][0]["by hand"][0]
    for answer in (*answers[2], answers[1][0]):
        for by_hand in answer["by hand"]:  # a weight that all examples have changes nothing
            assert by_hand["failure"] is None
            for name in ("signal", "noise", "weights", "group_size"):
                assert by_hand[name] == pytest.approx(alone[name], rel=1e-6)


def test_a_norm_that_fails_in_one_rank_takes_no_training_down(answers: dict[int, list[dict[str, Any]]]) -> None:
    first, second = (answer["norm fails"] for answer in answers[2])
    assert "another rank failed" in first["failure"]
    assert second["failure"] == "OSError: the disk is gone"
    assert [answer["norm warnings"] for answer in answers[2]] == [1, 1]
    plain = answers[1][0]["by hand"][0]["weights"]
    assert first["weights"] == second["weights"] == pytest.approx(plain, rel=1e-9)


def test_ranks_read_the_same_steps(answers: dict[int, list[dict[str, Any]]]) -> None:
    first, second = (answer["overhead"]["due"] for answer in answers[2])
    assert first == second


def test_one_rank_that_fails_takes_no_training_down(answers: dict[int, list[dict[str, Any]]]) -> None:
    first, second = (answer["one fails"] for answer in answers[2])
    assert "another rank failed" in first["failure"]
    assert second["failure"] == "OSError: the disk is gone"
    assert [answer["warnings"] for answer in answers[2]] == [1, 1]
    plain = answers[1][0]["whole"]["weights"]
    assert first["weights"] == pytest.approx(plain, rel=1e-9)
    assert second["weights"] == pytest.approx(plain, rel=1e-9)


def test_ranks_by_a_schedule_train_as_one_process(answers: dict[int, list[dict[str, Any]]]) -> None:
    alone = answers[1][0]["scheduled"]
    first, second = (answer["scheduled"] for answer in answers[2])
    assert first == second
    assert len(alone["losses"]) == 8 + 11  # 32 examples in fours, 85 in eights, of which the last has 5
    # Weights are single precision.
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert first["weights"] == pytest.approx(alone["weights"], rel=1e-5)

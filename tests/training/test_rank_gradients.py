"""A data-parallel training of two processes, read by what each rank holds."""

from __future__ import annotations

from typing import Any

import pytest
from launching import answered

RANKS = ("0", "1")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return answered(tmp_path_factory.mktemp("answers"), "training.two_ranks")


def test_two_ranks_are_the_two_halves_of_one_batch(answers: dict[str, Any]) -> None:
    alone = answers["alone"]["whole"]
    first, second = (answers[rank]["whole"] for rank in RANKS)
    assert first == second
    assert first["failure"] is None
    for name in ("signal", "noise"):
        assert first[name] == pytest.approx(alone[name], rel=1e-6)
    assert first["group_size"] == 6


def test_the_training_is_that_of_one_process(answers: dict[str, Any]) -> None:
    alone = answers["alone"]["whole"]
    for rank in RANKS:
        assert answers[rank]["whole"]["weights"] == pytest.approx(alone["weights"], rel=1e-9)
        assert answers[rank]["whole"]["idle"] == alone["idle"]


def test_micro_batches_of_all_ranks_are_pooled(answers: dict[str, Any]) -> None:
    """Of those before the reduction; each rank alone gives a reading, and both together their mean."""
    alone = answers["alone"]["accumulated"]
    first, second = (answers[rank]["accumulated"][0] for rank in RANKS)
    assert (first["signal"], first["noise"]) == (second["signal"], second["noise"])
    for name in ("signal", "noise"):
        mean = (alone[0][name] + alone[1][name]) / 2
        # The sum over ranks is of gradients divided by three, in steps of 12 and not 18 examples.
        assert first[name] == pytest.approx(mean, rel=1e-6)


def test_a_loop_that_adds_up_by_itself_is_read_as_one_process_that_accumulates(
    answers: dict[str, Any],
) -> None:
    alone = answers["alone"]["by hand"][0]
    for answer in answers.values():
        for by_hand in answer["by hand"]:  # a weight that all examples have changes nothing
            assert by_hand["failure"] is None
            for name in ("signal", "noise", "weights", "group_size"):
                assert by_hand[name] == pytest.approx(alone[name], rel=1e-6)


def test_a_norm_that_fails_in_one_rank_takes_no_training_down(answers: dict[str, Any]) -> None:
    first, second = (answers[rank]["norm fails"] for rank in RANKS)
    assert "another rank failed" in first["failure"]
    assert second["failure"] == "OSError: the disk is gone"
    assert [answers[rank]["norm warnings"] for rank in RANKS] == [1, 1]
    plain = answers["alone"]["by hand"][0]["weights"]
    assert first["weights"] == second["weights"] == pytest.approx(plain, rel=1e-9)


def test_ranks_read_the_same_steps(answers: dict[str, Any]) -> None:
    first, second = (answers[rank]["overhead"]["due"] for rank in RANKS)
    assert first == second


def test_one_rank_that_fails_takes_no_training_down(answers: dict[str, Any]) -> None:
    first, second = (answers[rank]["one fails"] for rank in RANKS)
    assert "another rank failed" in first["failure"]
    assert second["failure"] == "OSError: the disk is gone"
    assert [answers[rank]["warnings"] for rank in RANKS] == [1, 1]
    plain = answers["alone"]["whole"]["weights"]
    assert first["weights"] == pytest.approx(plain, rel=1e-9)
    assert second["weights"] == pytest.approx(plain, rel=1e-9)


def test_ranks_by_a_schedule_train_as_one_process(answers: dict[str, Any]) -> None:
    alone = answers["alone"]["scheduled"]
    first, second = (answers[rank]["scheduled"] for rank in RANKS)
    assert first == second
    assert len(alone["losses"]) == 8 + 11  # 32 examples in fours, 85 in eights, of which the last has 5
    # Weights are single precision.
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert first["weights"] == pytest.approx(alone["weights"], rel=1e-5)

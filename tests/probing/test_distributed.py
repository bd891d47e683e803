"""Several processes together measure what one does alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
from launching import answered

from batchopt.probing.distributed import share


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return answered(tmp_path_factory.mktemp("answers"), "probing.two_processes")


@pytest.mark.parametrize("scenario", ["examples", "weights", "groups", "coupled", "few"])
def test_two_processes_measure_what_one_does(answers: dict[str, Any], scenario: str) -> None:
    alone = answers["alone"][scenario]
    first, second = (answers[rank][scenario] for rank in ("0", "1"))
    assert first == second
    for name in ("signal", "noise"):
        assert first[name] == pytest.approx(alone[name], rel=1e-6)
    for name in ("value", "low"):
        assert first["batch_size"][name] == pytest.approx(alone["batch_size"][name], rel=1e-6)
    assert float(first["batch_size"]["high"]) == pytest.approx(float(alone["batch_size"]["high"]), rel=1e-6)
    same = ("examples", "group_size", "population", "method", "stopped")
    assert [first[name] for name in same] == [alone[name] for name in same]


def test_streams_of_unequal_length_are_pooled(answers: dict[str, Any]) -> None:
    alone = answers["alone"]["stream"]
    first, second = (answers[rank]["stream"] for rank in ("0", "1"))
    assert first == second
    assert (first["examples"], first["stopped"]) == (112, "population")
    assert first["signal"] == pytest.approx(alone["signal"], rel=1e-6)
    assert first["noise"] == pytest.approx(alone["noise"], rel=1e-6)


def test_one_process_that_fails_takes_the_others_along(answers: dict[str, Any]) -> None:
    first, second = (answers[rank]["one fails"] for rank in ("0", "1"))
    assert second == "OSError: the disk is gone"
    assert first.startswith("TaskError: the noise scale could not be measured, since process 1 failed: OSError: the")


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("units", [0, 1, 5, 14])
def test_shares_are_all_units_once(units: int, count: int) -> None:
    shares = [share(units, rank=rank, count=count) for rank in range(count)]
    assert [unit for begin, end in shares for unit in range(begin, end)] == list(range(units))
    assert max(end - begin for begin, end in shares) == math.ceil(units / count)

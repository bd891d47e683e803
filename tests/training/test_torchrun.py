"""`train`, `probe` and `scheduled_loader` under torchrun: two processes are as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from forecasting.known_law import known_forecast, known_plan
from launching import answered

from batchopt import ProbeReport

STEPS = 25 + 17 + 19


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("answers")


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, Any]:
    known_plan(0.3).save(folder / "plan.json")
    known_forecast().save(folder / "forecast.json")
    return answered(folder, "training.torchrun_script")


@pytest.mark.parametrize("kind", ["plain", "weighted", "parts", "zero"])
def test_the_losses_and_weights_are_those_of_one_process(answers: dict[str, Any], kind: str) -> None:
    alone = answers["alone"][kind]
    assert alone["losses"][-1] < 0.5 * alone["losses"][0]
    for rank in ("0", "1"):
        assert answers[rank][kind]["steps"] == STEPS
        assert answers[rank][kind]["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert answers[rank][kind]["weights"] == pytest.approx(alone["weights"], rel=1e-4, abs=1e-5)


def test_weights_differ_where_examples_count_differently(answers: dict[str, Any]) -> None:
    """What the test above could not see, if weights were left out."""
    assert answers["alone"]["plain"]["weights"] != pytest.approx(answers["alone"]["weighted"]["weights"], rel=1e-3)


def test_all_processes_end_together(answers: dict[str, Any]) -> None:
    assert answers["0"]["plain"] == answers["1"]["plain"]
    assert "became nan" in answers["0"]["diverged"] or "became inf" in answers["0"]["diverged"]
    assert answers["0"]["diverged"] == answers["1"]["diverged"]


def test_a_checkpoint_of_several_is_gone_on_with(answers: dict[str, Any], folder: Path) -> None:
    for rank in ("0", "1"):
        again = answers[rank]["again"]
        assert again["evaluated"] == []
        assert again["weights"] == answers[rank]["plain"]["weights"]
    lines = (folder / "together" / "plain2.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == answers["0"]["plain"]["losses"]


def test_a_probe_gives_every_process_the_same_report(answers: dict[str, Any]) -> None:
    report = ProbeReport.from_json(answers["0"]["report"])
    assert answers["1"]["report"] == answers["0"]["report"]
    assert report.stopped is None
    assert report.noise_scales


def test_fully_sharded_losses_are_those_of_one_process(answers: dict[str, Any]) -> None:
    assert len(answers["alone"]["sharded"]["losses"]) == STEPS
    for rank in ("0", "1"):
        assert answers[rank]["sharded"]["losses"] == pytest.approx(answers["alone"]["sharded"]["losses"], rel=1e-5)


def test_an_interrupted_training_goes_on_in_all_processes_alike(answers: dict[str, Any]) -> None:
    first, second, alone = (answers[name]["cut off"] for name in ("0", "1", "alone"))
    assert first == second
    for answer in (first, alone):
        assert answer["losses"] == answer["whole"]
    assert len(first["losses"]) == len(alone["losses"])
    assert first["losses"][-1] < 0.6 * first["losses"][0]


def test_what_nothing_depends_on_and_other_methods_of_the_model(answers: dict[str, Any]) -> None:
    for rank in ("0", "1"):
        assert answers[rank]["unused"] == pytest.approx(answers["alone"]["unused"], rel=1e-5)


def test_a_run_that_goes_back_on_its_decay_is_the_same_in_all_processes(answers: dict[str, Any]) -> None:
    first, second, alone = (answers[name]["adapted"] for name in ("0", "1", "alone"))
    assert first == second
    assert len(first["missed"]) == 1
    assert first["again"] == first["schedule"] == alone["schedule"]
    assert first["missed"] == alone["missed"]
    assert first["weights"] == pytest.approx(alone["weights"], rel=1e-4, abs=1e-6)
    assert first["apart"] == first["weights"], "each process has a folder of its own, as on several nodes"
    assert first["resumed weights"] == first["weights"]


def test_a_run_that_diverged_begins_again_in_all_processes(answers: dict[str, Any]) -> None:
    first, second, alone = (answers[name]["adapted"] for name in ("0", "1", "alone"))
    assert first["diverged"] == second["diverged"]
    ((_, steps),), ((_, steps_alone),) = first["diverged"], alone["diverged"]
    assert steps == pytest.approx(steps_alone, abs=3), "rounding decides when the loss overflows"
    assert first["begun again"] == second["begun again"]
    assert first["gone on"] == first["begun again"]
    for each in (first, second):
        assert "became" in each["undecided"], (
            "a schedule that is no longer changed does not begin again, in any process"
        )
    assert first["begun again"] == pytest.approx(alone["begun again"], rel=1e-4, abs=1e-6)


def test_processes_of_different_trainings_say_so(answers: dict[str, Any]) -> None:
    for rank in ("0", "1"):
        assert "process 1 has another seed than process 0: 1, not 0" in answers[rank]["disagree"]

"""A model that is sharded over two processes (FSDP2) is trained, measured and probed as one that is whole."""

from __future__ import annotations

from typing import Any

import pytest
from launching import answered
from probing.sharded_processes import BUDGET

from batchopt import ProbeReport

RANKS = ("0", "1")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return answered(tmp_path_factory.mktemp("answers"), "probing.sharded_processes")


@pytest.mark.parametrize("kind", ["trained", "in parts"])
def test_losses_are_those_of_one_process_also_where_it_was_cut_off(answers: dict[str, Any], kind: str) -> None:
    went_on, finished = answers["alone"][kind]
    assert went_on[-1] < 0.5 * went_on[0]
    for rank in RANKS:
        assert answers[rank][kind] == [pytest.approx(went_on, rel=1e-9), pytest.approx(finished, rel=1e-9)]


@pytest.mark.parametrize("kind", ["simple", "preconditioned"])
@pytest.mark.parametrize("loss", ["plain", "weighted"])
def test_noise_scales_are_those_of_the_same_groups_in_one_process(
    answers: dict[str, Any], kind: str, loss: str
) -> None:
    """The slow twin: gradients of the same groups, each by one backward pass of the whole model."""
    alone = answers["alone"][f"{kind} {loss}"]
    for rank in RANKS:
        found = answers[rank][f"{kind} {loss}"]
        assert found == answers["0"][f"{kind} {loss}"]
        for name in ("signal", "noise", "signal_with_decay"):
            assert found[name] == pytest.approx(alone[name], rel=1e-9)
        for end in ("value", "low", "high"):
            assert found["batch_size"][end] == pytest.approx(alone["batch_size"][end], rel=1e-6)
        for name in ("examples", "group_size", "population", "stopped", "metric"):
            assert found[name] == alone[name]
        assert found["method"] == "mean gradients of groups of 6 examples (the model is sharded over 2 processes)"


def test_the_noise_scales_differ_from_one_another(answers: dict[str, Any]) -> None:
    """What the test above could not see, if weights or the metric were left out."""
    values = [
        answers["0"][f"{kind} {loss}"]["batch_size"]["value"]
        for kind in ("simple", "preconditioned")
        for loss in ("plain", "weighted")
    ]
    assert all(abs(a / b - 1) > 0.02 for k, a in enumerate(values) for b in values[:k])


def test_a_gradient_that_is_not_finite_in_one_process_is_told_by_all(answers: dict[str, Any]) -> None:
    for rank in RANKS:
        assert answers[rank]["not finite"].startswith("NonFiniteLossError: a gradient is NaN or infinite")


def test_gradients_are_left_as_they_were(answers: dict[str, Any]) -> None:
    for name in ("0", "1", "alone"):
        assert answers[name]["grads"] == [True] * 4


def test_the_checkpoint_of_another_model_is_refused(answers: dict[str, Any]) -> None:
    for name in ("0", "1", "alone"):
        assert answers[name]["another model"].startswith("RecordError: ")
        assert "Missing key(s) in state_dict" in answers[name]["another model"]


@pytest.mark.parametrize("model", ["with_dropout", "normalised"])
def test_a_probe_in_which_processes_draw_apart_or_couple_examples(answers: dict[str, Any], model: str) -> None:
    report = ProbeReport.from_json(answers["0"][model])
    assert answers["1"][model] == answers["0"][model]
    assert report.stopped is None
    assert min(branch.batch_size for branch in report.runs) >= (4 if model == "normalised" else 1)
    knows_its_goal = any("the goal" in words for words in report.decisions)
    assert knows_its_goal == (model == "with_dropout")


def test_a_probe_is_the_same_in_all_processes_and_goes_on(answers: dict[str, Any]) -> None:
    report = ProbeReport.from_json(answers["0"]["report"])
    assert report.stopped is None
    assert {reading.kind for reading in report.noise_scales} == {"simple"}
    assert all("sharded over 2 processes" in reading.method for reading in report.noise_scales)
    assert report.examples_spent <= BUDGET
    for name in ("report", "report again", "late"):
        assert answers["1"][name] == answers["0"][name]
    assert answers["0"]["report again"] == answers["0"]["report"]
    late = ProbeReport.from_json(answers["0"]["late"])
    assert late.stopped == "the time was up"
    assert late.runs
    assert all(branch.examples > 0 for branch in late.runs)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("hessian", "TaskError: of a sharded model the kind must be one of simple, preconditioned, got 'hessian'"),
        ("stream", "TaskError: a sharded model is measured on a data set"),
        ("half", "TaskError: a sharded model must have every trainable parameter sharded over all"),
        ("weightless", "TaskError: the weights of a group of 6 examples must add up to more than 0"),
        (
            "tensor parallel",
            "TaskError: a sharded model must have every trainable parameter sharded over all processes",
        ),
        ("monitor", "TaskError: parameter '0.weight' is sharded over processes"),
    ],
)
def test_what_cannot_be_read_is_told(answers: dict[str, Any], what: str, message: str) -> None:
    for rank in RANKS:
        assert answers[rank][what].startswith(message)

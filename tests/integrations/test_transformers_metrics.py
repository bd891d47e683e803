"""A Trainer's compute_metrics gives a task the values that `Trainer.evaluate` gives."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from integrations.test_transformers_task import Classifier, pictures, tokens, trainer  # noqa: E402
from transformers.trainer_pt_utils import nested_concat  # noqa: E402

from batchopt.forecasting.forecast import Forecast  # noqa: E402
from batchopt.integrations.transformers import task_from_trainer  # noqa: E402
from batchopt.integrations.transformers_metrics import _together  # noqa: E402
from batchopt.planning.goal import BestMetric  # noqa: E402
from batchopt.probing.data import evaluation_cost  # noqa: E402
from batchopt.probing.evaluation import evaluated  # noqa: E402
from batchopt.probing.probe import probe  # noqa: E402


def scores(predicted: Any) -> dict[str, float]:
    """Accuracy, a mean over examples, and macro F1, which is none."""
    guessed, labels = predicted.predictions.argmax(-1), predicted.label_ids
    f1 = []
    for kind in range(3):
        right = np.sum((guessed == kind) & (labels == kind))
        f1.append(2.0 * right / max(1, np.sum(guessed == kind) + np.sum(labels == kind)))
    return {"accuracy": np.mean(guessed == labels), "f1": float(np.mean(f1))}


def token_accuracy(predicted: Any) -> dict[str, float]:
    """Over the tokens that count; what is left of the logits is the guess."""
    guessed, labels = predicted.predictions[:, :-1], predicted.label_ids[:, 1:]
    counts = labels != -100
    return {"token_accuracy": float(np.mean(guessed[counts] == labels[counts]))}


def test_metrics_of_the_whole_set_are_those_of_evaluate(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = trainer(
        tmp_path, model=Classifier(), data=pictures(), per_device_eval_batch_size=7,
        more={"eval_dataset": pictures(101), "compute_metrics": scores},
    )  # fmt: skip
    task = task_from_trainer(made)
    assert list(task.metrics) == ["accuracy", "f1"]
    expected = made.evaluate()
    found = evaluated(task, task.make_model())
    assert found.metrics == pytest.approx({name: expected[f"eval_{name}"] for name in task.metrics})
    assert found.loss == pytest.approx(expected["eval_loss"], rel=1e-5)
    # Both come from one more pass.
    assert evaluation_cost(task) == pytest.approx(101 * 2 / 3)


def collate(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    longest = max(len(e["input_ids"]) for e in examples)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        name: torch.stack([torch.nn.functional.pad(e[name], (0, longest - len(e[name])), value=v) for e in examples])
        for name, v in fill.items()
    }


def test_sequences_of_several_lengths_are_padded_as_the_trainer_does(tmp_path: Path) -> None:
    cut = [{name: row[: int(e["attention_mask"].sum())] for name, row in e.items()} for e in tokens(60)]
    made = trainer(
        tmp_path, data=cut, per_device_eval_batch_size=8,
        more={
            "eval_dataset": cut, "data_collator": collate, "compute_metrics": token_accuracy,
            "preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1),
        },
    )  # fmt: skip
    task = task_from_trainer(made)
    expected = made.evaluate()
    assert evaluated(task, task.make_model()).metrics == {
        "token_accuracy": pytest.approx(expected["eval_token_accuracy"])
    }


def test_all_metrics_come_from_one_call(tmp_path: Path) -> None:
    calls = []

    def counted(predicted: Any) -> dict[str, float]:
        calls.append(len(predicted.label_ids))
        return scores(predicted)

    made = trainer(
        tmp_path, model=Classifier(), data=pictures(), per_device_eval_batch_size=7,
        more={"eval_dataset": pictures(101), "compute_metrics": counted},
    )  # fmt: skip
    task = task_from_trainer(made)
    calls.clear()
    assert len(evaluated(task, task.make_model()).metrics) == 2
    assert calls == [101]


@pytest.mark.parametrize("form", [lambda a, b: a, lambda a, b: (a, b), lambda a, b: [a, {"hidden": b}]])
def test_batches_are_joined_once_as_the_trainer_joins_two_at_a_time(form: Any) -> None:
    rng = np.random.default_rng(0)
    kept = []
    for size, width in ((4, 5), (3, 7), (1, 2), (4, 7)):
        logits, labels = rng.normal(size=(size, width, 3)).astype(np.float32), rng.integers(0, 9, (size, width))
        kept.append((form(logits, rng.normal(size=size)), labels))
    found = _together(kept)
    for told, column in ((found.predictions, 0), (found.label_ids, 1)):
        expected = reduce(nested_concat, [each[column] for each in kept])
        assert repr(plain(told)) == repr(plain(expected))


def plain(nested: Any) -> Any:
    """Arrays as lists, with their types."""
    if isinstance(nested, dict):
        return {name: plain(value) for name, value in nested.items()}
    if isinstance(nested, list | tuple):
        return [type(nested), *map(plain, nested)]
    return str(nested.dtype), nested.tolist()


def test_a_goal_may_be_in_what_compute_metrics_returns(tmp_path: Path) -> None:
    made = trainer(
        tmp_path, model=Classifier(), data=pictures(), learning_rate=0.03,
        more={"eval_dataset": pictures(100), "compute_metrics": scores},
    )  # fmt: skip
    task = task_from_trainer(made)
    plan = Forecast.fit(probe(task, examples=12_000)).plan(BestMetric("f1", 6_000, "examples"), batch_sizes=(1, 64))
    assert plan.metrics["f1"].value > 0.6


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"compute_metrics": lambda _: 1 / 0}, "on 32 examples it raises ZeroDivisionError"),
        ({"compute_metrics": lambda _: {"loss": 1.0}}, "none of what it returns is a number .*, but loss"),
        ({"compute_metrics": scores, "eval_dataset": None}, "an eval_dataset with a length"),
    ],
)
def test_what_cannot_be_taken_over_is_said_with_the_remedy(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    made = trainer(tmp_path, model=Classifier(), data=pictures(), more={"eval_dataset": pictures(100), **changes})
    with pytest.warns(UserWarning, match=rf"compute_metrics is not taken over .*{why}.*metrics="):
        task = task_from_trainer(made)
    assert task.metrics == {}


def test_metrics_of_the_users_own_are_taken_in_its_place(tmp_path: Path) -> None:
    made = trainer(
        tmp_path, model=Classifier(), data=pictures(), more={"eval_dataset": pictures(100), "compute_metrics": scores}
    )
    own = {"right": lambda model, batch: model(**batch)["logits"].argmax(1) == batch["labels"]}
    assert task_from_trainer(made, metrics=own).metrics == own

"""Names of columns: usual ones are known, slips and doubles are said."""

from __future__ import annotations

import pytest

from batchopt.errors import EvidenceError
from batchopt.runs.columns import NAMES, SETTINGS, check_needed, plain, recognise


def test_usual_names_are_known() -> None:
    names = ["Name", "trainer/global_step", "train/loss", "Loss/val", "lr", "bs", "num_warmup_steps", "grad_norm"]
    assert recognise(names, {}) == {
        "run": "Name",
        "steps": "trainer/global_step",
        "training_loss": "train/loss",
        "evaluation_loss": "Loss/val",
        "batch_size": "bs",
        "learning_rate": "lr",
        "warmup_steps": "num_warmup_steps",
    }


def test_the_callers_word_counts() -> None:
    names = ["step", "dev/ce", "val_loss", "size"]
    assert recognise(names, {"evaluation_loss": "dev/ce", "examples": "step", "batch_size": "size"}) == {
        "evaluation_loss": "dev/ce",
        "examples": "step",
        "batch_size": "size",
    }


def test_a_count_of_calls_gives_way() -> None:
    assert recognise(["_step", "global_step"], {})["steps"] == "global_step"
    assert recognise(["_step", "examples"], {}) == {"examples": "examples"}
    assert recognise(["_step"], {"steps": "_step"}) == {"steps": "_step"}
    with pytest.raises(EvidenceError, match=r"'_step' of Weights & Biases counts calls of its log, .* --column steps="):
        recognise(["_step", "loss"], {})


@pytest.mark.parametrize(
    ("names", "given", "said"),
    [
        (["lr", "learning_rate"], {}, r"columns 'lr' and 'learning_rate' both stand for learning_rate: say which"),
        (["val_loss", "test_loss"], {}, r"columns=\{'evaluation_loss': 'val_loss'\} or --column"),
        (["loss", "train_loss", "val_loss"], {}, "'loss' and 'train_loss' both stand for training_loss, beside 'val_"),
        (["loss"], {"batch_size": "bs"}, "there is no column 'bs' for 'batch_size': the columns are 'loss'"),
        (["loss"], {"batchsize": "loss"}, "columns must be among run, steps, .* got 'batchsize'"),
    ],
)
def test_what_is_unclear(names: list[str], given: dict[str, str], said: str) -> None:
    with pytest.raises(EvidenceError, match=said):
        recognise(names, given)


def test_slips_are_looked_for_among_what_is_needed_and_missing() -> None:
    names = ["step", "loss", "lr", "batch_sizes", "speed", "best_loss", "min_learning_rate"]
    found = recognise(names, {})
    with pytest.raises(EvidenceError, match="column 'batch_sizes' is not known, and looks like 'batch_size': rename"):
        check_needed(names, found, ())
    check_needed(names, found, {"batch_size"})


def test_a_horizon_of_no_unit_is_asked_about() -> None:
    names = ["step", "loss", "lr", "bs", "horizon"]
    with pytest.raises(EvidenceError, match="column 'horizon' does not say whether it counts steps or examples"):
        check_needed(names, recognise(names, {}), ())
    given = {"horizon_steps": "horizon"}
    check_needed(names, recognise(names, given), ())


def test_other_columns_are_left_alone() -> None:
    assert recognise(["epoch", "accuracy", "grad_norm", "train/accuracy", "_timestamp"], {}) == {}


def test_no_name_stands_for_two() -> None:
    every = [alias for aliases in NAMES.values() for alias in aliases]
    assert len(set(every)) == len(every)
    assert all(plain(alias) == alias for alias in every)
    assert set(SETTINGS) < set(NAMES)

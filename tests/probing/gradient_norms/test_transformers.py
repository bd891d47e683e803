"""Architectures of Hugging Face Transformers, tiny and with random weights: right norms, and by which way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import transformers
from architectures import ARCHITECTURES, TINY
from probing.gradient_norms.twin import assert_like_twin, one_at_a_time
from torch import nn

from batchopt import gradient_coverage, per_example_squared_norms
from batchopt.integrations.transformers import task_from_trainer

EXAMPLES = 5
ONE_PASS = "all examples in one pass"
BRANCHES = "one pass for the examples that take the same branches (2 passes at most)"
EACH = "one backward pass each"


class Way(NamedTuple):
    """How gradients are taken, and which torch functions take parameters of which every example gets a copy."""

    method: str
    functions: frozenset[str] = frozenset()


def one_pass(*functions: str) -> Way:
    return Way(ONE_PASS, frozenset(functions))


def branches(*functions: str) -> Way:
    return Way(BRANCHES, frozenset(functions))


WAYS: dict[str, Way] = {
    "bert": branches(),
    "roberta": branches(),
    "distilbert": branches(),
    "albert": branches(),
    "electra": branches(),
    "deberta-v2": one_pass("layer_norm"),
    "modernbert": branches(),
    "gpt2": branches(),
    "gpt-neox": branches(),
    "opt": branches(),
    "bloom": one_pass(),
    "llama": branches("mul"),
    "mistral": one_pass("mul"),
    "mixtral": branches("__getitem__", "mul"),
    "qwen2": branches("mul"),
    "gemma2": one_pass("add"),
    "gemma3": branches("add"),
    "phi": branches(),
    "falcon": one_pass(),
    "mamba": one_pass("__getitem__", "conv1d", "exp", "matmul", "mul", "squeeze"),
    "t5": branches("mul"),
    "bart": branches(),
    "mbart": branches(),
    "pegasus": branches(),
    "vit": one_pass("add", "expand"),
    "deit": one_pass("add", "expand"),
    "swin": one_pass("__getitem__"),
    "convnext": one_pass("mul"),
    "clip": branches(),
    "whisper": one_pass("__getitem__"),
    "wav2vec2": branches("_weight_norm", "conv1d"),
    "longformer": Way(EACH),  # picks tokens by masks: how many, differs
}
"""Fewer copies are better: a change for the better is entered here, one for the worse is a regression."""


def functions_with_copies(ways: Mapping[str, str]) -> frozenset[str]:
    """Of parameter -> how its norms were taken."""
    notes = [note for way in ways.values() for note in way.split("; ") if "(used by " in note]
    return frozenset(note.rpartition("(used by ")[2].removesuffix(")") for note in notes)


def tiny(name: str, *, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    model = ARCHITECTURES[name].model(TINY._replace(dropout=dropout)).eval()
    for parameter in model.parameters():  # away from where biases are zero and scales are one
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def test_every_architecture_has_its_way() -> None:
    assert WAYS.keys() == ARCHITECTURES.keys()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_squared_norms_and_their_way(name: str) -> None:
    architecture = ARCHITECTURES[name]
    model, batch = tiny(name), architecture.batch(TINY, EXAMPLES, 0)
    if name == "mixtral":  # its fast kernel is not for float64
        model.set_experts_implementation("batched_mm")
    ways = assert_like_twin(model, architecture.loss, batch, method=WAYS[name].method)
    assert functions_with_copies(ways) == WAYS[name].functions


def test_experts_by_the_fast_kernel() -> None:
    mixtral = ARCHITECTURES["mixtral"]
    model, batch = tiny("mixtral"), mixtral.batch(TINY, EXAMPLES, 0)
    model.set_experts_implementation("grouped_mm")
    twin = one_at_a_time(model, mixtral.loss, batch).gradients.square().sum(1)
    got = per_example_squared_norms(model, mixtral.loss, batch)
    torch.testing.assert_close(got.double(), twin, rtol=5e-5, atol=0.0)
    ways = gradient_coverage(model, mixtral.loss, batch).ways
    experts = [way for name, way in ways.items() if "experts" in name]
    assert experts == ["products of the rows of every expert"] * len(experts)
    assert functions_with_copies(ways) == {"mul"}


TRAINED = ("bert", "roberta", "distilbert", "albert", "electra", "gpt2", "opt", "t5", "bart")


@pytest.mark.parametrize("name", TRAINED)
def test_dropout_is_no_hindrance(name: str) -> None:
    """In training mode masks are looked at after the first dropout, and hold nothing of it."""
    architecture = ARCHITECTURES[name]
    model = tiny(name, dropout=0.1).train()
    coverage = gradient_coverage(model, architecture.loss, architecture.batch(TINY, EXAMPLES, 0))
    assert WAYS[name].method in coverage.method


def test_layers_that_are_dropped_at_random_are_read_one_example_at_a_time() -> None:
    opt = ARCHITECTURES["opt"]
    model = tiny("opt", dropout=0.1).train()
    model.model.decoder.layerdrop = 0.3
    coverage = gradient_coverage(model, opt.loss, opt.batch(TINY, EXAMPLES, 0))
    assert "one backward pass each (control flow that may depend on random numbers)" in coverage.method


def test_the_loss_that_a_model_returns_itself() -> None:
    """What a training loop has: one number, the mean over the batch."""
    bert = ARCHITECTURES["bert"]
    model, batch = tiny("bert"), bert.batch(TINY, EXAMPLES, 0)
    assert_like_twin(model, lambda model, batch: model(**batch).loss, batch, method=BRANCHES)


def test_a_batch_without_padding_is_one_pass() -> None:
    bert = ARCHITECTURES["bert"]
    batch = bert.batch(TINY, EXAMPLES, 0)
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    assert_like_twin(tiny("bert"), bert.loss, batch, method=ONE_PASS)


@pytest.mark.parametrize(("name", "method"), [("bert", BRANCHES), ("gpt2", ONE_PASS), ("t5", BRANCHES)])
def test_attention_written_out(name: str, method: str) -> None:
    """`attn_implementation="eager"`: matrix products and a softmax, of causal models with a mask in any case."""
    architecture = ARCHITECTURES[name]
    model = tiny(name)
    model.set_attn_implementation("eager")
    assert_like_twin(model, architecture.loss, architecture.batch(TINY, EXAMPLES, 0), method=method)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_fine_tuning_by_a_trainer(name: str, tmp_path: Path) -> None:
    """The loss of a Trainer, batches of its collator, padding and dropout."""
    architecture = ARCHITECTURES[name]
    batch = architecture.batch(TINY, EXAMPLES, 0)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    data = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
    if "labels" not in batch:
        data = [{**example, "labels": label} for example, label in zip(data, labels, strict=True)]
    arguments = transformers.TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    trainer = transformers.Trainer(tiny(name, dropout=0.1), arguments, train_dataset=data)
    task = task_from_trainer(trainer)
    model, collated = task.model(), task.collate_fn(data)
    # The loss of causal models is in float32, whatever the model's dtype.
    assert_like_twin(model.eval(), task.loss, collated, method=BRANCHES, dtypes=(torch.float32,))
    assert BRANCHES in gradient_coverage(model.train(), task.loss, collated).method

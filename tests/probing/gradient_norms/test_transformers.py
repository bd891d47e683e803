"""Architectures of Hugging Face Transformers, tiny and with random weights: right norms, and by which way."""

from __future__ import annotations

import functools
from typing import NamedTuple

import pytest
import torch
from architectures import ARCHITECTURES, TINY, Batch, classification, next_token
from probing.gradient_norms.twin import assert_like_twin, one_at_a_time
from torch import Tensor, nn

from batchopt import gradient_coverage, per_example_squared_norms

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


WAYS: dict[str, Way] = {}


def functions_with_copies(ways: dict[str, str]) -> frozenset[str]:
    """Of parameter -> how its norms were taken."""
    notes = [note for way in ways.values() for note in way.split("; ") if "(used by " in note]
    return frozenset(note.rpartition("(used by ")[2].removesuffix(")") for note in notes)


def tiny(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = ARCHITECTURES[name].model(TINY).eval()
    for parameter in model.parameters():  # away from where biases are zero and scales are one
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_squared_norms_and_their_way(name: str) -> None:
    architecture = ARCHITECTURES[name]
    batch = architecture.batch(TINY, EXAMPLES, 0)
    ways = assert_like_twin(tiny(name), architecture.loss, batch, method=WAYS[name].method)
    assert functions_with_copies(ways) == WAYS[name].functions

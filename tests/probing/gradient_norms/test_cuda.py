"""Per-example gradients on a CUDA device against the twin on a CPU, and what only a device can do wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from probing.gradient_norms.test_modes import MIXED, Last, convolutional, squared_output, transformer
from probing.gradient_norms.test_shared import Language, next_token, text
from probing.gradient_norms.twin import in_double, one_at_a_time
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from batchopt import per_example_squared_norms
from batchopt.probing import per_example
from batchopt.probing.per_example import PerExampleGradients
from batchopt.probing.reading import Reading

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
BATCH = 6

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **MIXED,
    "convolutional": (convolutional, (3, 8, 8)),
    "transformer": (transformer, (7, 3)),
    "lstm": (lambda: Last(nn.LSTM(3, 8, num_layers=2, batch_first=True)), (5, 3)),
    "elman": (lambda: Last(nn.RNN(3, 8, batch_first=True)), (5, 3)),
}


def on_cuda(batch: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.to(CUDA), batch)


@pytest.mark.parametrize("name", MODELS)
def test_twin_on_the_cpu(name: str) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, batch = make().double(), in_double((torch.randn(BATCH, *shape),))
    expected = one_at_a_time(model, squared_output, batch).gradients.square().sum(1)
    got = per_example_squared_norms(model.to(CUDA), squared_output, on_cuda(batch))
    assert got.device.type == "cuda"
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-8, atol=0.0)


def test_a_language_model_with_a_tied_head() -> None:
    torch.manual_seed(0)
    model, batch = Language().double(), text()
    expected = one_at_a_time(model, next_token, batch).gradients.square().sum(1)
    got = per_example_squared_norms(model.to(CUDA), next_token, on_cuda(batch))
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-8, atol=0.0)


@pytest.mark.parametrize("name", [name for name in MIXED if name != "recurrent"])
def test_autocast_agrees_with_one_at_a_time_under_the_same_autocast(name: str) -> None:
    torch.manual_seed(0)
    make, shape = MIXED[name]
    model, x = make().to(CUDA), torch.randn(BATCH, *shape, device=CUDA)

    def alone(i: int) -> Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = squared_output(model, (x[i : i + 1],)).float().sum()
        return sum(g.double().square().sum() for g in torch.autograd.grad(loss, list(model.parameters())))

    expected = torch.stack([alone(i) for i in range(BATCH)])
    with torch.autocast("cuda", dtype=torch.bfloat16):
        got = per_example_squared_norms(model, squared_output, (x,))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=0.02, atol=0.0)


def test_a_pass_that_runs_out_of_memory_is_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1024, 4096), nn.ReLU(), nn.Linear(4096, 1024)).to(CUDA)
    x = torch.randn(4096, 1024, device=CUDA)
    expected = PerExampleGradients(Reading(model, squared_output, CUDA)).read((x,), len(x))
    monkeypatch.setattr(PerExampleGradients, "_memory", lambda self: 10**15)  # an estimate that is far off
    monkeypatch.setattr(per_example, "FIRST_CHUNK", 4096)
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.empty_cache()
    used = torch.cuda.memory_reserved(CUDA)
    try:
        torch.cuda.set_per_process_memory_fraction((used + 150e6) / total, CUDA)
        reader = PerExampleGradients(Reading(model, squared_output, CUDA))
        got = reader.read((x,), len(x))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, CUDA)
    assert "all examples in one pass" in reader.method
    assert got.units == expected.units
    assert got.squares == pytest.approx(expected.squares, rel=1e-4)


def test_random_generators_of_the_device_are_untouched() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 2)).to(CUDA)
    before = torch.cuda.get_rng_state(CUDA)
    per_example_squared_norms(model, squared_output, (torch.randn(BATCH, 8, device=CUDA),))
    assert torch.equal(before, torch.cuda.get_rng_state(CUDA))

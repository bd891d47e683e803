"""Mixtures of experts by torch's grouped product, which is for float32 and less only."""

from __future__ import annotations

import pytest
import torch
from probing.gradient_norms.twin import CPU, one_at_a_time
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (its usual name)

from batchopt.probing.gradient_norms import experts
from batchopt.probing.gradient_norms.experts import ExpertProducts
from batchopt.probing.gradients import PerExampleGradients, Reading

EXAMPLES, ROWS, EXPERTS = 5, 12, 3
pytestmark = pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="torch has no grouped product")


class Experts(nn.Module):
    """Rows go to the experts that their first feature says, one of which may get none.

    Args:
        transposed: whether the matrices are kept as those of a linear layer.
        again: whether rows go through the experts once more.
    """

    def __init__(self, *, transposed: bool, again: bool) -> None:
        super().__init__()
        self.weight, self.transposed, self.again = nn.Parameter(torch.randn(EXPERTS, 8, 8)), transposed, again

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        ids, order = (rows[:, 0].sigmoid() * EXPERTS).long().sort()
        ends = (ids[:, None] == torch.arange(EXPERTS)).sum(0).cumsum(0).int()
        weight = self.weight.transpose(-2, -1) if self.transposed else self.weight
        output = F.grouped_mm(rows[order], weight, offs=ends)
        if self.again:
            output = F.grouped_mm(output.tanh(), weight, offs=ends)
        return torch.zeros_like(output).index_copy(0, order, output).view(x.shape)


def energy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return model(batch[0]).sin().sum((1, 2)), batch[1]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_norms_and_sums(transposed: bool, again: bool) -> None:
    torch.manual_seed(0)
    model, batch = Experts(transposed=transposed, again=again), (torch.randn(EXAMPLES, ROWS, 8), torch.rand(EXAMPLES))
    twin = one_at_a_time(model, energy, batch)
    reader = PerExampleGradients(Reading(model, energy, CPU))
    squares = reader.squared_norms(batch, EXAMPLES)
    assert reader.ways == {"weight": "products of the rows of every expert"}
    torch.testing.assert_close(squares.double(), twin.gradients.square().sum(1), rtol=5e-5, atol=0.0)
    factor = torch.rand_like(model.weight) + 0.5
    got = PerExampleGradients(Reading(model, energy, CPU, factors=(factor,))).read(batch, EXAMPLES)
    weighted = twin.weights[:, None] * twin.gradients * factor.flatten()
    assert got.squares == pytest.approx(float(weighted.square().sum()), rel=5e-5)
    torch.testing.assert_close(got.total.double(), weighted.sum(0), rtol=0, atol=5e-5 * float(weighted.norm()))


def test_rows_that_are_no_experts_are_left_to_torch() -> None:
    class Fewer(Experts):
        def forward(self, x: Tensor) -> Tensor:
            rows, ends = x.flatten(0, 1), torch.tensor([2, 4, 6], dtype=torch.int32)
            return F.grouped_mm(rows, self.weight, offs=ends + 0 * rows[0, 0].int())[: 6 * len(x)][None]

    torch.manual_seed(0)
    reader = PerExampleGradients(Reading(Fewer(transposed=False, again=False), energy, CPU))
    reader.squared_norms((torch.randn(1, ROWS, 8), torch.ones(1)), 1)
    assert "products of the rows" not in str(reader.ways)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("ratio", [1.0, 1e-1, 1e-3])
def test_rows_that_cancel(ratio: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    left, right = torch.randn(EXAMPLES, ROWS, 6).double(), torch.randn(EXAMPLES, ROWS, 8).double()
    both = (
        torch.cat([left, -left], 1).to(dtype),
        torch.cat([right, right + ratio * torch.randn_like(right)], 1).to(dtype),
    )
    ids = torch.randint(EXPERTS, (EXAMPLES, ROWS)).repeat(1, 2)
    products = ExpertProducts(*both, ids, EXPERTS)
    exact = ExpertProducts(both[0].double(), both[1].double(), ids, EXPERTS).dense(slice(None)).square().sum((1, 2, 3))
    tolerance = 1e-10 if dtype == torch.float64 else 5e-5
    torch.testing.assert_close(products.squares(None).double(), exact, rtol=tolerance, atol=0.0)
    if ratio < 0.01 and dtype == torch.float32:
        monkeypatch.setattr(experts, "MOST_CANCELLATION", float("inf"))
        assert ((products.squares(None).double() - exact).abs() / exact).max() > tolerance, (
            "the formed gradient is needed"
        )

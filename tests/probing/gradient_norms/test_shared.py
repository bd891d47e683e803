"""Parameters that are used more than once: the norm of the sum over the uses."""

from __future__ import annotations

import pytest
import torch
from probing.gradient_norms.twin import Twin, assert_like_twin, one_at_a_time
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (its usual name)

from batchopt import per_example_squared_norms

BATCH, VOCABULARY, WIDTH = 6, 7, 4


class Language(nn.Module):
    """Tokens and positions, a mixing of positions, a head that is tied to the tokens."""

    def __init__(self, *, vocabulary: int = VOCABULARY, width: int = WIDTH) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(16, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(x + x.cumsum(1)))


def next_token(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    ids, targets = batch
    return F.cross_entropy(model(ids).transpose(1, 2), targets, reduction="none").mean(1)


def masked_next_token(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean over the tokens that count, weighted by their number."""
    ids, targets = batch
    counts = (targets != 0).sum(1)
    losses = F.cross_entropy(model(ids).transpose(1, 2), targets, reduction="none", ignore_index=0)
    return losses.sum(1) / counts.clamp_min(1), counts.to(losses.dtype)


def text(length: int = 9, vocabulary: int = VOCABULARY) -> tuple[Tensor, Tensor]:
    return torch.randint(vocabulary, (BATCH, length)), torch.randint(vocabulary, (BATCH, length))


def untied(model: Language) -> Language:
    """The same model with the head's weight a parameter of its own."""
    double = Language(vocabulary=model.tokens.num_embeddings).to(model.tokens.weight.dtype)
    double.load_state_dict(model.state_dict())
    double.head.weight = nn.Parameter(model.tokens.weight.detach().clone())
    return double


@pytest.mark.parametrize("loss", [next_token, masked_next_token])
@pytest.mark.parametrize("length", [2, 9])
@pytest.mark.parametrize("vocabulary", [7, 600])
def test_a_head_tied_to_the_embedding(loss: object, length: int, vocabulary: int) -> None:
    torch.manual_seed(0)
    model = Language(vocabulary=vocabulary)
    batch = text(length, vocabulary)
    separate = one_at_a_time(untied(model), loss, batch).gradients.square().sum(1)  # type: ignore[arg-type]
    ways = assert_like_twin(model, loss, batch, relative_to=lambda _: separate)  # type: ignore[arg-type]
    assert "head.weight" not in ways
    assert "used by" not in str(ways)


def test_a_norm_of_a_sum_is_not_a_sum_of_norms() -> None:
    torch.manual_seed(0)
    model, batch = Language(), text()
    tied, apart = (per_example_squared_norms(m, next_token, batch) for m in (model, untied(model)))
    assert ((tied / apart - 1).abs() > 1e-2).sum() >= 4


def test_uses_that_cancel_leave_nothing() -> None:
    class Cancelling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) - self.layer(x)

    got = per_example_squared_norms(Cancelling(), lambda model, x: model(x).sum(1), torch.randn(4, 3))
    assert (got < 1e-10).all()


class Forms(nn.Module):
    """One matrix as embedding, linear map twice, bare parameter: all pairs of forms."""

    def __init__(self, uses: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4))
        self.uses = uses

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        outputs = {
            "e": lambda: F.embedding(ids, self.weight).sum(2),
            "f": lambda: F.embedding(ids.flip(1)[:, :3], self.weight).prod(2),
            "l": lambda: F.linear(x, self.weight).sum(2),
            "m": lambda: x[:, :2] @ self.weight.mT,
            "t": lambda: (x @ torch.eye(4, 5, dtype=x.dtype)) @ self.weight,
            "d": lambda: self.weight.exp(),
        }
        return torch.cat(
            [
                outputs[use]().reshape(len(x) if use != "d" else 1, -1).sin().sum(1, keepdim=True).expand(len(x), 1)
                for use in self.uses
            ],
            1,
        )


@pytest.mark.parametrize(
    "uses", ["ee", "ef", "el", "eel", "ll", "lt", "lm", "ed", "ld", "eld", "efltd", "dd", "elm", "et"]
)
def test_all_pairs_of_forms(uses: str) -> None:
    torch.manual_seed(0)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return model(*batch).sum(1).square()

    def sizes(twin: Twin) -> Tensor:
        return twin.gradients.square().sum(1) + 1.0

    batch = (torch.randint(5, (BATCH, 6)), torch.randn(BATCH, 6, 4))
    assert_like_twin(Forms(uses), loss, batch, relative_to=sizes)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 4), (4,)),
        (nn.Linear(4, 4), (3, 4)),
        (nn.Conv1d(4, 4, 3, padding=1, groups=2), (4, 6)),
        (nn.Conv2d(4, 4, 3, padding=1), (4, 5, 5)),
        (nn.LayerNorm(4), (3, 4)),
        (nn.GroupNorm(2, 4), (4, 3)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_a_layer_called_twice(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    assert_like_twin(model, lambda model, x: model(x).square().flatten(1).sum(1), torch.randn(BATCH, *shape))


def test_a_weight_tied_between_layers_of_different_kinds() -> None:
    class AutoEncoder(nn.Module):
        """The decoder is the encoder's transpose."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(5, 3)
            self.convolution = nn.Conv1d(3, 5, 1)
            self.convolution.weight = nn.Parameter(torch.randn(5, 3, 1))

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.encoder(x).tanh()
            once = F.linear(hidden, self.encoder.weight.T)
            again = F.linear(self.convolution(hidden[..., None])[..., 0], self.convolution.weight[:, :, 0].T)
            return once + again @ self.encoder.weight

    torch.manual_seed(0)
    assert_like_twin(AutoEncoder(), lambda model, x: (model(x) - x).square().sum(1), torch.randn(BATCH, 5))

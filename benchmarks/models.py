"""The models that are measured, each with its per-example loss and an endless supply of seeded, learnable batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

CONTEXT = 128
CHARACTERS = 96
CLASSES = 10

Batch = tuple[Tensor, ...]


class Workload(NamedTuple):
    """What to train; unpacks as `model, loss, make_batch`."""

    model: nn.Module
    loss: Callable[[Any, Batch], Tensor]
    """(model, batch) -> losses of shape (batch,)."""
    make_batch: Callable[[int, int], Batch]
    """(batch_size, seed) -> the same batch every time; other seeds, other examples of the same population."""


def autoencoder(seed: int = 0) -> Workload:
    """MLP autoencoder 784-128-16-128-784 on images with eight latent dimensions."""
    mixing = torch.randn(8, 784, generator=_generator(1))

    def make_batch(batch_size: int, seed: int) -> Batch:
        return (torch.sigmoid(torch.randn(batch_size, 8, generator=_generator(seed)) @ mixing),)

    def loss(model: Any, batch: Batch) -> Tensor:
        return (model(batch[0]) - batch[0]).square().mean(1)

    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 16), nn.ReLU(),
        nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 784), nn.Sigmoid(),
    )  # fmt: skip
    return Workload(model, loss, make_batch)


def cnn(seed: int = 0) -> Workload:
    """CNN with GroupNorm on 32x32 images."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    channels = 3
    for width in (32, 64, 128):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU()]
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU(), nn.MaxPool2d(2)]
        channels = width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))
    return Workload(model, _cross_entropy, _images())


def resnet18(seed: int = 0) -> Workload:
    """ResNet-18 with GroupNorm on 32x32 images."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.GroupNorm(32, 64), nn.ReLU()]
    channels = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [_ResidualBlock(channels, width, stride), _ResidualBlock(width, width, 1)]
        channels = width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))
    return Workload(model, _cross_entropy, _images())


def gpt(seed: int = 0) -> Workload:
    """GPT of 4 layers, width 256, context 128, head tied to the embedding, on characters."""
    torch.manual_seed(seed)
    return Workload(_GPT(), _next_character_loss, _text())


def lstm(seed: int = 0) -> Workload:
    """Language model of a 2-layer LSTM, width 256, context 128, on characters."""
    torch.manual_seed(seed)
    return Workload(_LSTM(), _next_character_loss, _text())


MODELS: dict[str, Callable[..., Workload]] = {
    "autoencoder": autoencoder,
    "cnn": cnn,
    "resnet18": resnet18,
    "gpt": gpt,
    "lstm": lstm,
}


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(32, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(32, width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride=stride, bias=False), nn.GroupNorm(32, width)
            )

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(hidden)) + self.shortcut(x))


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(x).split(width, dim=2)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = _SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _GPT(nn.Module):
    def __init__(self, *, layers: int = 4, width: int = 256, heads: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(CHARACTERS, width)
        self.positions = nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(_TransformerBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CHARACTERS, bias=False)
        self.apply(_small_weights)
        for name, parameter in self.named_parameters():
            if name.endswith(("out.weight", "mlp.2.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers))
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class _LSTM(nn.Module):
    def __init__(self, *, width: int = 256) -> None:
        super().__init__()
        self.tokens = nn.Embedding(CHARACTERS, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, CHARACTERS)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.tokens(ids))[0])


def _small_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _cross_entropy(model: Any, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def _next_character_loss(model: Any, batch: Batch) -> Tensor:
    """Mean over the characters of a sequence."""
    logits = model(batch[0])
    return functional.cross_entropy(logits.transpose(1, 2), batch[1], reduction="none").mean(1)


def _images() -> Callable[[int, int], Batch]:
    """A smooth pattern for each class, shifted at random, under noise; one label in ten is wrong."""
    coarse = torch.randn(CLASSES, 3, 8, 8, generator=_generator(2))
    patterns = functional.interpolate(coarse, size=(32, 32), mode="bilinear")

    def make_batch(batch_size: int, seed: int) -> Batch:
        generator = _generator(seed)
        classes = torch.randint(CLASSES, (batch_size,), generator=generator)
        shifts = torch.randint(32, (batch_size, 2, 1, 1), generator=generator)
        down, right = (torch.arange(32).view(shape) for shape in ((1, 32, 1), (1, 1, 32)))
        y, x = (down + shifts[:, 0]) % 32, (right + shifts[:, 1]) % 32
        images = patterns[classes[:, None, None], :, y, x].permute(0, 3, 1, 2).contiguous()
        images += torch.randn(images.shape, generator=generator)
        wrong = torch.rand(batch_size, generator=generator) < 0.1
        other = torch.randint(CLASSES, (batch_size,), generator=generator)
        return images, torch.where(wrong, other, classes)

    return make_batch


def _text() -> Callable[[int, int], Batch]:
    """Text of a source in which four characters may follow any one, and other four any two."""
    tables = _generator(3)
    after_one = torch.randint(CHARACTERS, (CHARACTERS, 4), generator=tables)
    after_two = torch.randint(CHARACTERS, (CHARACTERS, CHARACTERS, 4), generator=tables)
    shares = torch.tensor([0.55, 0.25, 0.15, 0.05])

    def make_batch(batch_size: int, seed: int) -> Batch:
        generator = _generator(seed)
        length = CONTEXT + 1
        ids = torch.empty(batch_size, length, dtype=torch.long)
        ids[:, :2] = torch.randint(CHARACTERS, (batch_size, 2), generator=generator)
        choices = torch.multinomial(shares, batch_size * length, replacement=True, generator=generator)
        choices = choices.view(batch_size, length)
        by_two = torch.rand(batch_size, length, generator=generator) < 0.5
        for t in range(2, length):
            before, last, choice = ids[:, t - 2], ids[:, t - 1], choices[:, t]
            ids[:, t] = torch.where(by_two[:, t], after_two[before, last, choice], after_one[last, choice])
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    return make_batch


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)

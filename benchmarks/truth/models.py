"""The models of the problems, small enough to be trained a hundred times."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

CHARACTERS = 96


def softmax_regression() -> nn.Module:
    """On 8x8 digits, 650 parameters."""
    return nn.Linear(64, 10)


def digits_mlp(width: int = 64) -> nn.Module:
    """On 8x8 digits, 5,000 parameters."""
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def mnist_cnn(width: int = 64) -> nn.Module:
    """Two strided convolutions and a hidden layer, 20,000 parameters."""
    inner, outer = width // 8, width // 4
    return nn.Sequential(
        nn.Conv2d(1, inner, 5, stride=2), nn.ReLU(),
        nn.Conv2d(inner, outer, 5, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * outer, width), nn.ReLU(), nn.Linear(width, 10),
    )  # fmt: skip


def cifar_cnn() -> nn.Module:
    """Three strided convolutions with BatchNorm, 24,000 parameters."""
    layers: list[nn.Module] = []
    for inner, outer in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inner, outer, 3, stride=2, padding=1), nn.BatchNorm2d(outer), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def imagenette_cnn() -> nn.Module:
    """Three strided convolutions with GroupNorm, augmentation and dropout, 20,000 parameters."""
    layers: list[nn.Module] = [FlipAndShift(4)]
    for inner, outer, kernel, stride in ((3, 16, 5, 4), (16, 32, 3, 2), (32, 48, 3, 2)):
        layers += [nn.Conv2d(inner, outer, kernel, stride, padding=1), nn.GroupNorm(4, outer), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(48, 10))


class FlipAndShift(nn.Module):
    """In training: each image is mirrored or not, and moved by up to `most` pixels, at random."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return images
        count, _, height, width = images.shape
        flip = (torch.rand(count, 1, 1, 1, device=images.device) < 0.5).expand_as(images)
        images = torch.where(flip, images.flip(3), images)
        padded = functional.pad(images, (self.most,) * 4)
        down, right = torch.randint(2 * self.most + 1, (2, count, 1), device=images.device)
        rows = (down + torch.arange(height, device=images.device))[:, None, :, None]
        columns = (right + torch.arange(width, device=images.device))[:, None, None, :]
        examples = torch.arange(count, device=images.device)[:, None, None, None]
        channels = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
        return padded[examples, channels, rows, columns]


def autoencoder() -> nn.Module:
    """784-128-16-128-784, 200,000 parameters."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 16),
        nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 784),
    )  # fmt: skip


class VariationalAutoencoder(nn.Module):
    """784-128-(8 means, 8 log variances)-128-784; gives the loss of each image in nats per pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 16))
        self.decoder = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 784))

    def forward(self, images: Tensor) -> Tensor:
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        sample = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        logits = self.decoder(sample)
        reconstruction = functional.binary_cross_entropy_with_logits(logits, images.flatten(1), reduction="none")
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)
        return (reconstruction.sum(1) + divergence.sum(1)) / 784.0


class CharacterLSTM(nn.Module):
    """One layer of width 64, 40,000 parameters."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(CHARACTERS, 32)
        self.lstm = nn.LSTM(32, width, batch_first=True)
        self.head = nn.Linear(width, CHARACTERS)

    def forward(self, codes: Tensor) -> Tensor:
        return self.head(self.lstm(self.tokens(codes))[0])


class CharacterTransformer(nn.Module):
    """Two layers of width 48, 4 heads, 70,000 parameters."""

    def __init__(self, *, context: int = 32, width: int = 48, layers: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(CHARACTERS, width)
        self.positions = nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = nn.ModuleList(_Block(width, heads=4) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CHARACTERS)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, codes: Tensor) -> Tensor:
        hidden = self.tokens(codes) + self.positions[: codes.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden))


class _Block(nn.Module):
    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        nn.init.normal_(self.out.weight, std=0.02 / math.sqrt(2.0))

    def forward(self, hidden: Tensor) -> Tensor:
        count, length, width = hidden.shape
        parts = self.qkv(self.norm1(hidden)).view(count, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.out(mixed.transpose(1, 2).reshape(count, length, width))
        return hidden + self.mlp(self.norm2(hidden))

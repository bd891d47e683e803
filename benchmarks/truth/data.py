"""The data of the problems: from the folder that BATCHOPT_DATA names, else what scikit-learn has or downloads."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Split = tuple[Tensor, ...]
"""Tensors of one length, rows are examples."""

DOWNLOADS = {"mnist": "mnist_784", "cifar10-subset": "CIFAR_10"}
"""Sets that scikit-learn's fetch_openml has under a name of its own."""


@cache
def digits() -> tuple[Split, Split]:
    """8x8 digits, which ship with scikit-learn: images (n, 64) and labels; 1,437 to train, 360 held out."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x = torch.tensor(images[order] / 16.0, dtype=torch.float32)
    y = torch.tensor(labels[order])
    return (x[:1437], y[:1437]), (x[1437:], y[1437:])


@cache
def mnist() -> tuple[Split, Split]:
    """Images (n, 1, 28, 28) from 0 to 1, and labels."""
    return _images("mnist", held_out=1024)


@cache
def cifar10() -> tuple[Split, Split]:
    """Images (n, 3, 32, 32) of mean 0 and variance 1, and labels."""
    return tuple((_standardised(x), y) for x, y in _images("cifar10-subset", held_out=512))  # type: ignore[return-value]


@cache
def imagenette() -> tuple[Split, Split]:
    """Images (n, 3, 64, 64) of mean 0 and variance 1, and labels of ten ImageNet classes."""
    return tuple((_standardised(x), y) for x, y in _images("imagenette64-subset", held_out=512))  # type: ignore[return-value]


@cache
def shakespeare(context: int) -> tuple[Split, Split]:
    """Sequences (n, context + 1) of character codes below 96, each beginning where the last one ended."""
    text = (_folder("tinyshakespeare.txt") / "tinyshakespeare.txt").read_bytes()
    codes = torch.frombuffer(bytearray(text), dtype=torch.uint8).clamp(32, 127).long() - 32
    count = (len(codes) - 1) // context
    sequences = codes[: count * context + 1].unfold(0, context + 1, context).contiguous()
    held_out = 256
    return (sequences[:-held_out],), (sequences[-held_out:],)


def _standardised(images: Tensor) -> Tensor:
    return (images - 0.45) / 0.25


def _images(name: str, *, held_out: int) -> tuple[Split, Split]:
    if os.environ.get("BATCHOPT_DATA") or name not in DOWNLOADS:
        with np.load(_folder(f"{name}.npz") / f"{name}.npz", allow_pickle=False) as archive:
            parts = [archive[key] for key in ("x_train", "y_train", "x_test", "y_test")]
    else:
        parts = _download(DOWNLOADS[name], train=12_000 if name == "cifar10-subset" else 60_000)
    x_train, y_train, x_test, y_test = (torch.from_numpy(np.ascontiguousarray(part)) for part in parts)
    train, test = ((_channels_first(x), y.reshape(-1).long()) for x, y in ((x_train, y_train), (x_test, y_test)))
    return train, (test[0][:held_out], test[1][:held_out])


def _channels_first(images: Tensor) -> Tensor:
    scaled = images.float() / 255.0
    return scaled.unsqueeze(1) if scaled.ndim == 3 else scaled.permute(0, 3, 1, 2).contiguous()


def _download(name: str, *, train: int) -> list[np.ndarray]:
    from sklearn.datasets import fetch_openml

    x, y = fetch_openml(name, return_X_y=True, as_frame=False, parser="liac-arff")
    shape = (-1, 28, 28) if name == "mnist_784" else (-1, 3, 32, 32)
    images = np.asarray(x, np.uint8).reshape(shape)
    if images.ndim == 4:
        images = images.transpose(0, 2, 3, 1)
    labels = np.asarray(y).astype(np.int64)
    return [images[:train], labels[:train], images[-2_000:], labels[-2_000:]]


def _folder(file: str) -> Path:
    folder = os.environ.get("BATCHOPT_DATA")
    if not folder or not (Path(folder) / file).exists():
        raise SystemExit(f"BATCHOPT_DATA must name a folder that holds {file}, got {folder!r}: it cannot be downloaded")
    return Path(folder)

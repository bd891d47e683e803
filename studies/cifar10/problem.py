"""CIFAR-10 with a convolutional network and momentum, after McCandlish et al. 2018, table 1.

Data: cifar10-subset.npz (x_train uint8 (n, 32, 32, 3), y_train, x_test, y_test) in the folder that BATCHOPT_DATA names,
else the download of scikit-learn's fetch_openml("CIFAR_10").
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import batchopt

TESTED = 2_000
"""Images that are held out, of those that are downloaded."""


def load() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images (n, 3, 32, 32), about of mean 0 and variance 1, and labels (n,): to train on, and held out."""
    folder = os.environ.get("BATCHOPT_DATA")
    if folder:
        path = Path(folder) / "cifar10-subset.npz"
        if not path.exists():
            raise FileNotFoundError(
                f"BATCHOPT_DATA must name a folder with cifar10-subset.npz, got {folder!r}: unset the variable to "
                "download CIFAR-10 from OpenML"
            )
        with np.load(path, allow_pickle=False) as archive:
            parts = [archive[key] for key in ("x_train", "y_train", "x_test", "y_test")]
        images, labels = [parts[0], parts[2]], [parts[1], parts[3]]
    else:
        from sklearn.datasets import fetch_openml

        x, y = fetch_openml("CIFAR_10", return_X_y=True, as_frame=False, parser="liac-arff")
        x = np.asarray(x, np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        images, labels = [x[:-TESTED], x[-TESTED:]], [y[:-TESTED], y[-TESTED:]]
    train, test = (
        (_scaled(x), torch.from_numpy(np.asarray(y).reshape(-1).astype(np.int64)))
        for x, y in zip(images, labels, strict=True)
    )
    return train, test


def _scaled(images: np.ndarray) -> Tensor:
    return (torch.from_numpy(np.ascontiguousarray(images)).float().permute(0, 3, 1, 2) / 255.0 - 0.45) / 0.25


def make_model() -> nn.Module:
    """Four convolutions with GroupNorm, 67,000 parameters."""
    layers: list[nn.Module] = []
    for inner, outer, stride in ((3, 24, 2), (24, 48, 2), (48, 64, 1), (64, 64, 2)):
        layers += [nn.Conv2d(inner, outer, 3, stride=stride, padding=1), nn.GroupNorm(8, outer), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 10))


def per_example_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of every example, (batch,)."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def make_task() -> batchopt.TrainingTask:
    """The task."""
    train, test = load()
    return batchopt.TrainingTask(
        model=make_model,
        data=train,
        eval_data=test,
        loss=per_example_loss,
        optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
    )


task = make_task()

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from flow import Settings, run_study

    run_study(
        __file__,
        full=Settings(examples=150_000, loss=1.2, paper="CIFAR10: 300, 900; 400, 2,000"),
        smoke=Settings(examples=4_000),
    )

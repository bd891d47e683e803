"""MNIST with a small convolutional network and SGD, after McCandlish et al. 2018, table 1.

Data: mnist.npz (x_train uint8 (n, 28, 28), y_train) in the folder that BATCHOPT_DATA names, else the download of
scikit-learn's fetch_openml("mnist_784").
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import batchopt

TRAINING_EXAMPLES = 60_000


def load() -> tuple[Tensor, Tensor]:
    """Images (60000, 1, 28, 28), scaled to mean 0 and variance 1, and labels (60000,)."""
    folder = os.environ.get("BATCHOPT_DATA")
    if folder:
        path = Path(folder) / "mnist.npz"
        if not path.exists():
            raise FileNotFoundError(
                f"BATCHOPT_DATA must name a folder with mnist.npz, got {folder!r}: unset the variable to "
                "download MNIST from OpenML"
            )
        with np.load(path, allow_pickle=False) as archive:
            images, labels = archive["x_train"], archive["y_train"]
    else:
        from sklearn.datasets import fetch_openml

        images, labels = fetch_openml("mnist_784", version=1, return_X_y=True, as_frame=False, parser="liac-arff")
    x = torch.from_numpy(np.asarray(images[:TRAINING_EXAMPLES], np.float32)).reshape(-1, 1, 28, 28) / 255.0
    y = torch.from_numpy(np.asarray(labels[:TRAINING_EXAMPLES]).astype(np.int64))
    return (x - 0.1307) / 0.3081, y


def make_model() -> nn.Module:
    """Two convolutions and a hidden layer, 20,000 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 5, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def per_example_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of every example, (batch,)."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def make_task() -> batchopt.TrainingTask:
    """The task."""
    return batchopt.TrainingTask(
        model=make_model,
        data=load(),
        loss=per_example_loss,
        optimizer=lambda parameters, lr, momentum=0.0: torch.optim.SGD(parameters, lr=lr, momentum=momentum),
        search={"momentum": (0.0, 0.95, "linear")},
    )


task = make_task()

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from flow import Settings, run_study

    run_study(
        __file__,
        full=Settings(examples=800_000, loss=0.1, paper="MNIST: 20, 200; 50, 900"),
        smoke=Settings(examples=8_000),
    )

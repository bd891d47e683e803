"""The task of the demo: the handwritten digits that ship with scikit-learn, a small multilayer perceptron, SGD."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from batchopt.probing.task import TrainingTask

EVALUATION_EXAMPLES = 512


def make_model() -> nn.Module:
    """64 pixels, one hidden layer of 64, ten classes."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def per_example_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of every example, (batch,)."""
    images, labels = batch
    return nn.functional.cross_entropy(model(images), labels, reduction="none")


def make_task() -> TrainingTask:
    """The 1,797 digits; the loss is evaluated on 512 of them, which stay in training."""
    digits = load_digits()
    images = torch.tensor(digits.data / 16.0, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    return TrainingTask(
        model=make_model,
        data=(images, labels),
        eval_data=(images[:EVALUATION_EXAMPLES], labels[:EVALUATION_EXAMPLES]),
        loss=per_example_loss,
        optimizer=lambda parameters, lr, weight_decay=0.0: torch.optim.SGD(
            parameters, lr=lr, weight_decay=weight_decay
        ),
        device="cpu",
        search={"weight_decay": (1e-6, 1e-2, "log")},
    )

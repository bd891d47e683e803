"""A residual network on ImageNet, with augmentation and label smoothing, after McCandlish et al. 2018, table 1.

Data: the folder that BATCHOPT_IMAGENET names, with train/CLASS/*.JPEG and val/CLASS/*.JPEG (needs torchvision, and the
network is then ResNet-50 at 224 pixels); else imagenette64-subset.npz (x_train uint8 (n, 64, 64, 3), y_train, x_test,
y_test), ten classes, in the folder that BATCHOPT_DATA names, and the network has 14 layers.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import batchopt

SMOOTHING = 0.1


def load() -> tuple[Any, Any]:
    """Data to train on and held-out data: images (channels, height, width) and labels.

    Raises:
        FileNotFoundError: neither variable names a folder with the data.
    """
    if "BATCHOPT_IMAGENET" in os.environ:
        return _folder(Path(os.environ["BATCHOPT_IMAGENET"]))
    path = Path(os.environ.get("BATCHOPT_DATA", "")) / "imagenette64-subset.npz"
    if not path.exists():
        raise FileNotFoundError(
            "BATCHOPT_IMAGENET must name a folder with train/CLASS/*.JPEG and val/CLASS/*.JPEG (https://image-net.org, "
            "or https://github.com/fastai/imagenette), or BATCHOPT_DATA one with imagenette64-subset.npz"
        )
    with np.load(path, allow_pickle=False) as archive:
        parts = [torch.from_numpy(archive[key]) for key in ("x_train", "y_train", "x_test", "y_test")]
    images = [(part.permute(0, 3, 1, 2).float() / 255.0 - 0.45) / 0.25 for part in parts[::2]]
    return (images[0], parts[1].reshape(-1).long()), (images[1], parts[3].reshape(-1).long())


def _folder(folder: Path) -> tuple[Any, Any]:
    from torchvision import datasets, transforms

    normalised = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    crop = [transforms.Resize(256), transforms.CenterCrop(224)]
    augmented = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    return (
        datasets.ImageFolder(str(folder / "train"), transforms.Compose([*augmented, *normalised])),
        datasets.ImageFolder(str(folder / "val"), transforms.Compose([*crop, *normalised])),
    )


class MirrorAndShift(nn.Module):
    """In training: each image is mirrored or not, and moved by up to `most` pixels, at random."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, images: Tensor) -> Tensor:
        """Of the same shape."""
        if not self.training:
            return images
        count, channels, height, width = images.shape
        mirrored = (torch.rand(count, 1, 1, 1, device=images.device) < 0.5).expand_as(images)
        padded = nn.functional.pad(torch.where(mirrored, images.flip(3), images), (self.most,) * 4)
        down, right = torch.randint(2 * self.most + 1, (2, count, 1), device=images.device)
        rows = (down + torch.arange(height, device=images.device))[:, None, :, None]
        columns = (right + torch.arange(width, device=images.device))[:, None, None, :]
        examples = torch.arange(count, device=images.device)[:, None, None, None]
        return padded[examples, torch.arange(channels, device=images.device)[None, :, None, None], rows, columns]


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inner: int, outer: int, stride: int, norm: type[nn.Module] | Any) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inner, outer, 3, stride, padding=1, bias=False),
            norm(outer),
            nn.ReLU(),
            nn.Conv2d(outer, outer, 3, padding=1, bias=False),
            norm(outer),
        )
        is_same = stride == 1 and inner == outer
        self.shortcut = nn.Identity() if is_same else nn.Conv2d(inner, outer, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, outer, ...)."""
        return torch.relu(self.body(images) + self.shortcut(images))


def make_model(norm: type[nn.Module] | Any) -> nn.Module:
    """ResNet-14 of widths 16 to 64, 180,000 parameters; for ImageNet's own folder ResNet-50."""
    if "BATCHOPT_IMAGENET" in os.environ:
        from torchvision.models import resnet50

        return resnet50(norm_layer=norm)
    layers: list[nn.Module] = [MirrorAndShift(4), nn.Conv2d(3, 16, 5, 2, padding=2, bias=False), norm(16), nn.ReLU()]
    for inner, outer, stride in ((16, 16, 2), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)):
        layers.append(Block(inner, outer, stride, norm))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def per_example_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of every example with smoothed labels, (batch,)."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none", label_smoothing=SMOOTHING)


def make_task(norm: type[nn.Module] | Any) -> batchopt.TrainingTask:
    """The task with one kind of normalisation."""
    train, test = load()
    return batchopt.TrainingTask(
        model=partial(make_model, norm),
        data=train,
        eval_data=test,
        loss=per_example_loss,
        optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=1e-4),
    )


task = make_task(partial(nn.GroupNorm, 8))
batchnorm = make_task(nn.BatchNorm2d)

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from flow import Settings, run_study

    PAPER = "ImageNet: 1,000, 15,000; 4,000, 30,000"
    run_study(
        __file__,
        full={
            "task": Settings(examples=120_000, loss=1.6, paper=PAPER),
            "batchnorm": Settings(examples=120_000, loss=1.6, paper=PAPER),
        },
        smoke=Settings(examples=3_000),
    )

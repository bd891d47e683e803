"""The autoencoder and the variational autoencoder of McCandlish et al. 2018, on SVHN, and a classifier.

Data, the first that is there in the folder that BATCHOPT_DATA names: svhn.npz (x_train uint8 (n, 32, 32, 3), y_train,
x_test, y_test); train_32x32.mat and test_32x32.mat as they are on the site of SVHN; mnist.npz, on which the study runs
in its place, and says so. Without the variable it is the download of scikit-learn's fetch_openml("SVHN").
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import batchopt

Images = tuple[np.ndarray, np.ndarray]
"""uint8 (n, height, width, 3) or (n, height, width), and labels (n,) from 0 to 9."""
TESTED = 2_000
"""Images on which losses are evaluated."""


def load() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images (n, channels, height, width) from 0 to 1, and labels (n,): to train on, and held out.

    Raises:
        FileNotFoundError: the folder that BATCHOPT_DATA names holds none of the files.
    """
    folder = os.environ.get("BATCHOPT_DATA")
    train, test = _downloaded() if not folder else _in_folder(Path(folder))
    return _tensors(*train), _tensors(test[0][:TESTED], test[1][:TESTED])


def _in_folder(folder: Path) -> tuple[Images, Images]:
    if (folder / "svhn.npz").exists():
        return _archive(folder / "svhn.npz")
    if (folder / "train_32x32.mat").exists():
        return _matlab(folder / "train_32x32.mat"), _matlab(folder / "test_32x32.mat")
    if (folder / "mnist.npz").exists():
        warnings.warn(f"SVHN is not in {folder}: the study runs on MNIST in its place", RuntimeWarning, stacklevel=3)
        return _archive(folder / "mnist.npz")
    raise FileNotFoundError(
        f"BATCHOPT_DATA must name a folder with svhn.npz, or train_32x32.mat and test_32x32.mat of "
        f"http://ufldl.stanford.edu/housenumbers, got {folder}: put one there, or unset the variable to download SVHN"
    )


def _archive(path: Path) -> tuple[Images, Images]:
    with np.load(path, allow_pickle=False) as archive:
        x_train, y_train, x_test, y_test = (archive[key] for key in ("x_train", "y_train", "x_test", "y_test"))
    return (x_train, y_train), (x_test, y_test)


def _matlab(path: Path) -> Images:
    """A file of SVHN's site: images (32, 32, 3, n), and labels (n, 1) with 10 for the digit 0."""
    from scipy.io import loadmat

    content = loadmat(path)
    return content["X"].transpose(3, 0, 1, 2), content["y"].reshape(-1) % 10


def _downloaded() -> tuple[Images, Images]:
    from sklearn.datasets import fetch_openml

    x, y = fetch_openml("SVHN", return_X_y=True, as_frame=False, parser="liac-arff")
    images, labels = np.asarray(x, np.uint8).reshape(-1, 32, 32, 3), np.asarray(y).astype(np.int64) % 10
    return (images[:-TESTED], labels[:-TESTED]), (images[-TESTED:], labels[-TESTED:])


def _tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    x = torch.from_numpy(np.ascontiguousarray(images)).float() / 255.0
    x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous()
    return x, torch.from_numpy(labels.reshape(-1).astype(np.int64))


class Autoencoder(nn.Module):
    """Two hidden layers of 256 and a code of 32 numbers; gives the squared error of each image, a mean over pixels."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 256), nn.ReLU(), nn.Linear(256, 32))
        self.decoder = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, pixels))

    def forward(self, images: Tensor) -> Tensor:
        """(batch,)."""
        return (self.decoder(self.encoder(images)) - images.flatten(1)).square().mean(1)


class VariationalAutoencoder(nn.Module):
    """Likewise with 16 Gaussian latents; gives the negative evidence lower bound of each image, in nats a pixel."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 256), nn.ReLU(), nn.Linear(256, 32))
        self.decoder = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, pixels))

    def forward(self, images: Tensor) -> Tensor:
        """(batch,)."""
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        logits = self.decoder(mean + torch.randn_like(mean) * (0.5 * log_variance).exp())
        pixels = images.flatten(1)
        reconstruction = nn.functional.binary_cross_entropy_with_logits(logits, pixels, reduction="none")
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)
        return (reconstruction.sum(1) + divergence.sum(1)) / pixels.shape[1]


def make_classifier(channels: int) -> nn.Module:
    """Three strided convolutions with GroupNorm."""
    layers: list[nn.Module] = []
    for inner, outer in ((channels, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inner, outer, 3, stride=2, padding=1), nn.GroupNorm(8, outer), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 10))


TRAIN, TEST = load()
CHANNELS, PIXELS = TRAIN[0].shape[1], TRAIN[0][0].numel()


def _adam(parameters: list[Tensor], lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=lr)


def _own_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return model(batch[0])


def _cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


task = batchopt.TrainingTask(
    model=lambda: Autoencoder(PIXELS), data=TRAIN, eval_data=TEST, loss=_own_loss, optimizer=_adam
)
vae = batchopt.TrainingTask(
    model=lambda: VariationalAutoencoder(PIXELS), data=TRAIN, eval_data=TEST, loss=_own_loss, optimizer=_adam
)
classifier = batchopt.TrainingTask(
    model=lambda: make_classifier(CHANNELS), data=TRAIN, eval_data=TEST, loss=_cross_entropy, optimizer=_adam
)

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from flow import Settings, run_study

    run_study(
        __file__,
        full={
            "task": Settings(examples=150_000, loss=0.02, paper="autoencoder on SVHN: 10, 40; 2, 2"),
            "vae": Settings(examples=150_000, loss=0.18, paper="VAE on SVHN: 10, 200; 10, 10"),
            "classifier": Settings(examples=150_000, loss=0.1, paper="SVHN: 50, 500; 300, 4,000"),
        },
        smoke=Settings(examples=4_000),
    )

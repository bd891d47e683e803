"""Small data of the form that the studies read."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def images(count: int, shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise whose brightness tells the label."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, count, dtype=np.uint8)
    noise = generator.integers(0, 60, (count, *shape), dtype=np.uint8)
    return noise + (18 * labels).reshape(-1, *[1] * len(shape)).astype(np.uint8), labels


def save_images(path: Path, shape: tuple[int, ...], train: int = 1_500, test: int = 256) -> None:
    (x_train, y_train), (x_test, y_test) = images(train, shape, 0), images(test, shape, 1)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


def save_all(made: Path) -> None:
    """Whatever a study asks for."""
    save_images(made / "cifar10-subset.npz", (32, 32, 3))
    save_images(made / "imagenette64-subset.npz", (64, 64, 3), train=600, test=64)
    save_images(made / "mnist.npz", (28, 28))
    generator = np.random.default_rng(0)
    words = [f"w{k}" for k in range(40)]
    lines = (" ".join(generator.choice(words, 12)) for _ in range(5_000))
    (made / "imdb-text.txt").write_text("\n".join(lines))

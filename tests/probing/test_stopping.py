"""When a measurement stops: where it looks, that it looks twice, and that its intervals hold after that."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

import batchopt.probing.stopping as stopping_module
from batchopt.noise_scale import GradientMoments, SignalAndNoise, noise_scale_of
from batchopt.probing.moments import GradientSums, MomentAccumulator
from batchopt.probing.stopping import collect_until_narrow, is_narrow
from batchopt.uncertainty import Estimate

NOISE_SCALE, DIMENSIONS = 40.0, 50


def source(rng: np.random.Generator, units: int, *, processes: int = 1) -> Callable[[int], GradientSums | None]:
    """Gaussian gradients with tr(Sigma) = 50 and a noise scale of 40."""
    left = units

    def read(missing: int) -> GradientSums | None:
        nonlocal left
        count = min(processes * missing, left)
        left -= count
        if count == 0:
            return None
        gradients = rng.standard_normal((count, DIMENSIONS)) + NOISE_SCALE**-0.5
        total = torch.from_numpy(gradients.sum(0))
        return GradientSums(count, float(count), float(count), total, None, float((gradients**2).sum()))

    return read


def accumulator(group_size: int = 1) -> MomentAccumulator:
    return MomentAccumulator(quota=max(1, 8 // group_size), group_size=group_size, gradient_bytes=400)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Units at each look."""
    seen: list[int] = []

    def spy(moments: GradientMoments) -> SignalAndNoise:
        seen.append(round(float(moments.units.sum())))
        return noise_scale_of(moments)

    monkeypatch.setattr(stopping_module, "noise_scale_of", spy)
    return seen


@pytest.mark.parametrize(
    ("group_size", "expected"), [(1, [128, 256, 512, 1024]), (4, [32, 64, 128, 256, 512, 1024]), (64, [16, 32, 64])]
)
def test_looks_at_doublings(group_size: int, expected: list[int], looks: list[int]) -> None:
    read = source(np.random.default_rng(0), expected[-1] + 3)
    narrow = collect_until_narrow(
        read, accumulator(group_size), group_size=group_size, population=None, relative_width=1e-9
    )
    assert not narrow
    assert looks == expected


def test_what_is_narrow_is_confirmed(looks: list[int]) -> None:
    moments = accumulator()
    read = source(np.random.default_rng(0), 10_000)
    assert collect_until_narrow(read, moments, group_size=1, population=None, relative_width=5.0)
    assert looks == [128, 192]
    assert moments.units == 192


def test_what_is_not_confirmed_goes_on(monkeypatch: pytest.MonkeyPatch, looks: list[int]) -> None:
    answers = iter([False, True, False, True, True])
    monkeypatch.setattr(stopping_module, "is_narrow", lambda reading, width: next(answers))
    assert collect_until_narrow(
        source(np.random.default_rng(0), 10_000), accumulator(), group_size=1, population=None, relative_width=0.1
    )
    assert looks == [128, 256, 384, 768, 1152]


def test_many_processes_fill_groups_before_the_first_look(looks: list[int]) -> None:
    moments = accumulator()
    read = source(np.random.default_rng(0), 4_000, processes=20)
    collect_until_narrow(read, moments, group_size=1, population=None, relative_width=1e-9)
    assert looks == [8 * 160, 16 * 160]
    assert moments.units == 4_000


def test_an_unresolved_reading_is_not_narrow() -> None:
    assert is_narrow(Estimate(10.0, 9.0, 11.0, True), 0.2)
    assert not is_narrow(Estimate(10.0, 9.0, 11.0, True), 0.19)
    assert not is_narrow(Estimate(10.0, 9.0, math.inf, False), 0.2)
    assert not is_narrow(Estimate(10.0, 9.0, 11.0, False), 0.2)


@pytest.mark.parametrize("relative_width", [0.4, 0.8])
def test_intervals_cover_after_stopping(relative_width: float) -> None:
    # 400 repetitions at 90 % lie within 85.5 and 94.5 % with a probability of 99.7 %.
    rng, covered = np.random.default_rng(1), 0
    truth = NOISE_SCALE
    for _ in range(400):
        moments = accumulator()
        assert collect_until_narrow(
            source(rng, 10**5), moments, group_size=1, population=None, relative_width=relative_width
        )
        reading = noise_scale_of(moments.moments(None)).batch_size
        covered += reading.low <= truth <= reading.high
    assert 0.855 <= covered / 400 <= 0.96

"""Signal and noise of steps, pooled: gradients are drawn from a normal distribution of known moments."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchopt.training.running_noise import MOST_BLOCKS, RunningNoise, StepMoments

DIMENSIONS = 6
SCALES = np.linspace(0.5, 1.5, DIMENSIONS)
MEAN = np.linspace(0.1, 0.3, DIMENSIONS)
SIGNAL, NOISE = float(MEAN @ MEAN), float(SCALES @ SCALES)


def units(rng: np.random.Generator, sizes: list[int], mean: np.ndarray = MEAN) -> np.ndarray:
    """What each unit adds to the sum over examples, (units, dimensions)."""
    counts = np.array(sizes, float)[:, None]
    return counts * mean + np.sqrt(counts) * SCALES * rng.standard_normal((len(sizes), DIMENSIONS))


def in_units(parts: np.ndarray, sizes: list[int]) -> StepMoments:
    total = parts.sum(0)
    return StepMoments.of_units(
        square=float(total @ total),
        unit_squares=float((parts**2).sum()),
        coefficients=sum(sizes),
        coefficients_squared=sum(size**2 for size in sizes),
        freedom=sum(sizes),
        examples=sum(sizes),
        group_size=max(sizes),
    )


def whole(parts: np.ndarray, sizes: list[int]) -> StepMoments:
    total = parts.sum(0)
    return StepMoments.of_whole(square=float(total @ total), weight=sum(sizes) ** 2, share=sum(sizes))


def training(
    rng: np.random.Generator,
    steps: int,
    *,
    sizes: list[list[int]],
    every: int,
    norms: bool = True,
    window: int | None = None,
    mean: np.ndarray = MEAN,
) -> RunningNoise:
    noise = RunningNoise(window)
    for step in range(1, steps + 1):
        each = sizes[(step // every) % len(sizes)]
        parts = units(rng, each, mean)
        if step % every == 0:
            noise = noise.add(step, in_units(parts, each))
        elif norms:
            noise = noise.add(step, whole(parts, each))
    return noise


def test_moments_of_units_by_the_definition() -> None:
    sizes = [3, 5, 2]
    parts = units(np.random.default_rng(0), sizes)
    moments = in_units(parts, sizes)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    product = sum(parts[i] @ parts[j] for i, j in pairs)
    weights = sum(sizes[i] * sizes[j] for i, j in pairs)
    assert moments.product == pytest.approx(product, rel=1e-12)
    assert moments.pairs == weights
    assert moments.scatter == pytest.approx((parts**2).sum() - 38 * product / weights, rel=1e-12)
    # The norm of the whole holds nothing that the units don't say.
    noise = moments.scatter / moments.freedom
    assert (moments.square - noise * moments.share) / moments.weight == pytest.approx(product / weights, rel=1e-9)


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize(("sizes", "every"), [([[4, 4]], 1), ([[1] * 8], 5), ([[3, 5], [12, 20, 8]], 3)])
def test_signal_and_noise_are_unbiased(norms: bool, sizes: list[list[int]], every: int) -> None:
    rng = np.random.default_rng(1)
    found = []
    for _ in range(150):
        reading = training(rng, 150, sizes=sizes, every=every, norms=norms).reading(method="", population=None)
        assert reading is not None
        found.append((reading.signal, reading.noise))
    values = np.array(found)
    error = values.std(0, ddof=1) / math.sqrt(len(values))
    assert np.all(np.abs(values.mean(0) - [SIGNAL, NOISE]) < 4 * error)


def test_a_finite_population_is_drawn_without_replacement() -> None:
    rng = np.random.default_rng(2)
    population = MEAN + SCALES * rng.standard_normal((16, DIMENSIONS))
    mean = population.mean(0)
    noise = float(((population - mean) ** 2).sum()) / 15
    found = []
    for _ in range(300):
        running = RunningNoise(1000)
        for step in range(1, 61):
            parts = population[rng.permutation(16)[:8]]
            running = running.add(step, (in_units if step % 3 == 0 else whole)(parts, [1] * 8))
        reading = running.reading(method="", population=16)
        assert reading is not None
        found.append((reading.signal, reading.noise))
    values = np.array(found)
    error = values.std(0, ddof=1) / math.sqrt(len(values))
    assert np.all(np.abs(values.mean(0) - [mean @ mean, noise]) < 4 * error)


@pytest.mark.parametrize(("sizes", "gain"), [([[16, 16]], 0.9), ([[1] * 32], 0.7)])
def test_norms_of_whole_gradients_make_the_signal_sharper(sizes: list[list[int]], gain: float) -> None:
    spread = {}
    for norms in (False, True):
        rng = np.random.default_rng(3)
        readings = [training(rng, 200, sizes=sizes, every=16, norms=norms, window=200) for _ in range(100)]
        signals = [reading.signal for noise in readings if (reading := noise.reading(method="", population=None))]
        spread[norms] = np.std(signals)
    assert spread[True] < gain * spread[False]


@pytest.mark.parametrize(("sizes", "every"), [([[8, 8]], 2), ([[1] * 16], 8), ([[64, 64]], 2)])
def test_intervals_hold_the_truth(sizes: list[list[int]], every: int) -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(150):
        reading = training(rng, 300, sizes=sizes, every=every).reading(method="", population=None)
        assert reading is not None
        covered += reading.batch_size.low <= NOISE / SIGNAL <= reading.batch_size.high
    assert 0.82 <= covered / 150 <= 0.97


def test_a_drift_is_followed_where_few_steps_say_enough() -> None:
    """The mean gradient halves at step 700: of all that counts a third is from before."""
    followed, window = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        latest, fixed = RunningNoise(), RunningNoise(500)
        for step in range(1, 1001):
            parts = units(rng, [64, 64], MEAN * (2.0 if step < 700 else 1.0))
            latest, fixed = (noise.add(step, in_units(parts, [64, 64])) for noise in (latest, fixed))
        for noise, values in ((latest, followed), (fixed, window)):
            reading = noise.reading(method="", population=None)
            assert reading is not None
            values.append(reading.batch_size.value / (NOISE / SIGNAL))
    assert 0.85 < np.median(followed) < 1.15
    assert np.median(window) < 0.6


def test_no_signal_is_unresolved() -> None:
    rng = np.random.default_rng(5)
    resolved = 0
    for _ in range(100):
        running = training(rng, 200, sizes=[[4, 4]], every=2, mean=np.zeros(DIMENSIONS))
        reading = running.reading(method="", population=None)
        assert reading is not None
        resolved += reading.resolved
    assert resolved <= 12  # 5 % of the time the interval of zero lies above it


def test_few_readings_are_a_guess() -> None:
    rng = np.random.default_rng(6)
    running = RunningNoise()
    assert running.reading(method="", population=None) is None
    running = running.add(1, whole(units(rng, [8]), [8]))
    assert running.reading(method="", population=None) is None
    running = running.add(2, in_units(units(rng, [4, 4]), [4, 4]))
    reading = running.reading(method="m", population=None)
    assert reading is not None
    assert not reading.resolved
    assert reading.batch_size.high == math.inf
    assert math.isinf(running.shortfall(0.3, population=None))


def test_the_shortfall_foretells_the_width() -> None:
    rng = np.random.default_rng(7)
    ratios = []
    for _ in range(40):
        small = training(rng, 300, sizes=[[16, 16]], every=2)
        times = small.shortfall(0.4, population=None)
        large = training(rng, round(300 * times), sizes=[[16, 16]], every=2).reading(method="", population=None)
        assert large is not None
        width = math.log(large.batch_size.high / large.batch_size.low)
        ratios.append(width / (2 * math.asinh(0.2)))
    assert 0.8 < np.median(ratios) < 1.25


@given(
    st.lists(st.booleans(), min_size=1, max_size=300),
    st.one_of(st.none(), st.integers(2, 200)),
    st.integers(0, 2**32 - 1),
)
def test_blocks_hold_the_steps_of_the_window_once(kinds: list[bool], window: int | None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    running = RunningNoise(window)
    all_moments = []
    for step, is_read in enumerate(kinds, start=1):
        parts = units(rng, [2, 2])
        all_moments.append((in_units if is_read else whole)(parts, [2, 2]))
        running = running.add(step, all_moments[-1])
    assert len(running.blocks) <= MOST_BLOCKS
    assert [block.last_step for block in running.blocks] == sorted({block.last_step for block in running.blocks})
    weight = sum(block.moments.weight for block in running.blocks)
    held = weight / 16
    assert held == round(held)
    assert sum(moments.square for moments in all_moments[-round(held) :]) == pytest.approx(
        sum(block.moments.square for block in running.blocks)
    )
    wanted = min(len(kinds), window or (len(kinds) + 1) // 2)
    assert held >= wanted
    assert all(block.readings for block in running.blocks[1:])
    assert RunningNoise.from_json(running.to_json()) == running

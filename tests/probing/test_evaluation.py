"""Evaluation points cover a run evenly in the logarithm of examples."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchopt.probing.evaluation import evaluation_points


@given(examples=st.integers(1, 10**7), first=st.integers(1, 10**5), ratio=st.floats(1.05, 3.0))
def test_points_rise_and_are_a_ratio_apart(examples: int, first: int, ratio: float) -> None:
    points = evaluation_points(examples, first=first, ratio=ratio)
    assert points[0] == 0
    assert points[-1] == examples
    assert all(left < right for left, right in pairwise(points))
    inner = points[1:]
    assert inner[0] == min(first, examples) or first > examples / math.sqrt(ratio)
    for i, (left, right) in enumerate(pairwise(inner)):
        widest = ratio**1.5 if i == len(inner) - 2 else ratio
        assert right <= math.ceil(left * widest) + 1


@given(examples=st.integers(1, 10**7), first=st.integers(1, 10**5), ratio=st.floats(1.05, 3.0))
def test_no_point_is_close_to_the_end(examples: int, first: int, ratio: float) -> None:
    before = evaluation_points(examples, first=first, ratio=ratio)[-2]
    assert before * math.sqrt(ratio) <= examples * (1 + 1e-12)


def test_number_grows_with_the_logarithm() -> None:
    counts = [len(evaluation_points(10**n, first=10)) for n in (3, 5, 7)]
    steps = math.log(100) / math.log(1.2)
    assert counts[1] - counts[0] == pytest.approx(steps, abs=1.5)
    assert counts[2] - counts[1] == pytest.approx(steps, abs=1.5)


def test_a_run_shorter_than_the_first_point() -> None:
    assert evaluation_points(5, first=80) == [0, 5]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"ratio must exceed 1, got 1\.0"):
        evaluation_points(100, first=10, ratio=1.0)
    with pytest.raises(ValueError, match="first must be at least 1, got 0"):
        evaluation_points(100, first=0)
    with pytest.raises(ValueError, match="examples must be at least 1, got 0"):
        evaluation_points(0, first=1)

"""Ticks lie on the axis, are round, and are few enough to read."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchopt.visualization.axes import MOST_TICKS, Span, log_axis, powers_of_two, round_numbers, span_of

spans = st.tuples(st.floats(1e-9, 1e9), st.floats(1.2, 1e12)).map(lambda pair: Span(pair[0], pair[0] * pair[1]))


@given(spans)
def test_powers_of_two_on_the_axis(span: Span) -> None:
    ticks = powers_of_two(span)
    assert len(ticks) <= MOST_TICKS
    assert all(span.low <= tick <= span.high and math.log2(tick).is_integer() for tick in ticks)
    assert list(ticks) == sorted(set(ticks))


@given(spans)
def test_round_numbers_on_the_axis(span: Span) -> None:
    ticks = round_numbers(span)
    slack = 1e-9 * span.high
    assert 1 <= len(ticks) <= MOST_TICKS
    assert all(span.low - slack <= tick <= span.high + slack for tick in ticks)
    assert all(float(f"{tick:.6g}") == pytest.approx(tick) for tick in ticks)


def test_one_two_five_over_some_decades() -> None:
    assert round_numbers(Span(0.9, 60.0)) == (1.0, 2.0, 5.0, 10.0, 20.0, 50.0)


def test_equal_steps_where_the_axis_is_short() -> None:
    assert round_numbers(Span(2.9, 3.4)) == pytest.approx((2.9, 3.0, 3.1, 3.2, 3.3, 3.4))


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=6))
def test_a_span_shows_every_value(values: list[float]) -> None:
    span = span_of(values, least=4.0)
    assert all(span.low < value < span.high for value in values)
    assert span.high / span.low >= 4.0


@pytest.mark.parametrize("values", [[], [0.0, -3.0], [math.inf, math.nan]])
def test_nothing_to_show_still_gives_an_axis(values: list[float]) -> None:
    assert span_of(values) == Span(1.0, 10.0)


def test_an_infinite_end_lies_on_the_edge() -> None:
    span = Span(2.0, 8.0)
    assert (span.clip(math.inf), span.clip(-math.inf), span.clip(3.0)) == (8.0, 2.0, 3.0)


def test_a_falling_axis_has_its_large_end_first() -> None:
    axis = log_axis("loss", Span(0.1, 10.0), falling=True)
    assert axis["range"] == pytest.approx([1.0, -1.0])


def test_batch_sizes_are_labelled_in_full() -> None:
    axis = log_axis("batch size", Span(1_000.0, 5_000.0), powers=True)
    assert axis["ticktext"] == ["1,024", "2,048", "4,096"]

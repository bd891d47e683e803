from __future__ import annotations

from typing import Any

import pytest
from visualization.samples import rising_schedule

from batchopt.learning_rate_schedule import LearningRateSchedule
from batchopt.schedules.schedule import Schedule, Segment
from batchopt.visualization.schedule import Piece, is_flat, plot_schedule, schedule_data


def test_pieces_end_where_the_next_begins() -> None:
    first, second, third = schedule_data(rising_schedule())
    assert first == Piece(0, 12_000, 64, 0.7 * 0.1, 0.7)
    assert (second.start, second.end, second.learning_rate) == (12_000, 40_000, 0.1)
    assert third.end == 90_000


def test_without_a_rate_only_the_multiplier_is_known() -> None:
    (piece,) = schedule_data(Schedule.constant(64, examples=1_000))
    assert piece == Piece(0, 1_000, 64, None, 1.0)


def test_the_line_steps_at_the_switches() -> None:
    line = plot_schedule(rising_schedule()).data[0]
    assert list(line.x) == [0, 12_000, 40_000, 90_000]
    assert list(line.y) == [64, 128, 256, 256]
    assert line.line.shape == "hv"


def test_labels_say_size_and_rate() -> None:
    labels = [note.text for note in plot_schedule(rising_schedule()).layout.annotations]
    assert labels == ["64<br>lr 0.07", "128<br>lr 0.1", "256<br>lr 0.16"]
    unrated = Schedule((Segment(0, 8), Segment(500, 16, 2.0)), 1_000)
    assert [note.text for note in plot_schedule(unrated).layout.annotations] == ["8<br>", "16<br>lr x 2"]


def test_a_piece_too_short_for_its_label_has_none() -> None:
    schedule = Schedule((Segment(0, 8), Segment(10, 16), Segment(5_000, 32)), 10_000, 0.1)
    assert len(plot_schedule(schedule).layout.annotations) == 2


def test_one_batch_size_needs_no_panel_of_its_own() -> None:
    rates = LearningRateSchedule.of("linear", examples=1_000, warmup_examples=100)
    figure = plot_schedule(Schedule.constant(64, examples=1_000, learning_rate=0.1, learning_rate_schedule=rates))
    assert [list(trace.y) for trace in figure.data] == [[0.0, 0.1, 0.0]]
    assert "yaxis2" not in figure.layout
    assert "at batch size 64" in figure.layout.title.text


@pytest.mark.parametrize(
    ("shape", "warmup", "flat"),
    [("constant", 0, True), ("constant", 100, False), ("wsd", 0, False), (None, 0, True)],
)
def test_what_stays_as_it_is_needs_no_figure(shape: Any, warmup: int, flat: bool) -> None:
    rates = None if shape is None else LearningRateSchedule.of(shape, examples=1_000, warmup_examples=warmup)
    assert is_flat(Schedule.constant(64, examples=1_000, learning_rate_schedule=rates)) is flat
    assert not is_flat(rising_schedule())


def test_a_file_s_name_is_no_schedule() -> None:
    with pytest.raises(TypeError, match="got str: load it"):
        plot_schedule("schedule.json")  # type: ignore[arg-type]

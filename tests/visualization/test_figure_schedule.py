from __future__ import annotations

import pytest
from visualization.samples import rising_schedule

from batchopt.schedules.schedule import Schedule, Segment
from batchopt.visualization.schedule import Piece, plot_schedule, schedule_data


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


def test_a_file_s_name_is_no_schedule() -> None:
    with pytest.raises(TypeError, match="got str: load it"):
        plot_schedule("schedule.json")  # type: ignore[arg-type]

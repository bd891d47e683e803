"""The seam: one registry, options checked before an exporter is called."""

from __future__ import annotations

import inspect

import pytest

from batchopt.schedules.exporters import registry
from batchopt.schedules.exporters.export import Export
from batchopt.schedules.exporters.registry import EXPORTERS, export_schedule
from batchopt.schedules.schedule import Schedule

SCHEDULE = Schedule.constant(64, examples=640)


def test_an_exporter_is_one_function_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def to_lines(schedule: Schedule, *, scale: int, offset: int = 1) -> Export:
        return Export(f"{schedule(0) * scale + offset}", ("no learning rate",))

    monkeypatch.setitem(registry.EXPORTERS, "lines", to_lines)
    assert export_schedule(SCHEDULE, "lines", scale=2) == Export("129", ("no learning rate",))
    assert export_schedule(SCHEDULE, "lines", scale=2, offset=0).text == "128"
    with pytest.raises(ValueError, match=r"lines needs scale$"):
        export_schedule(SCHEDULE, "lines")


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match=r"to must be one of 'megatron', .*, got 'nanotron'"):
        export_schedule(SCHEDULE, "nanotron")
    with pytest.raises(TypeError, match="takes the options tokens_per_example, micro_batch, data_parallel, got tokens"):
        export_schedule(SCHEDULE, "megatron", tokens=1)
    with pytest.raises(TypeError, match=r"megatron takes the options .*, got args"):
        export_schedule(SCHEDULE, "megatron", args=1)
    with pytest.raises(TypeError, match=r"schedule must be a batchopt\.Schedule, got str: load it"):
        export_schedule("schedule.json", "ignite")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="megatron needs tokens_per_example, data_parallel"):
        export_schedule(SCHEDULE, "megatron", micro_batch=8)


@pytest.mark.parametrize("name", EXPORTERS)
def test_every_exporter_documents_its_options(name: str) -> None:
    options = list(inspect.signature(EXPORTERS[name]).parameters)[1:]
    documented = inspect.getdoc(EXPORTERS[name]) or ""
    assert "schedule: " in documented
    assert all(f"{option}: " in documented for option in options)

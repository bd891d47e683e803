"""Starts the processes of a test, as torchrun would or alone, from one that has torch: importing it takes seconds."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

_CONTEXT = multiprocessing.get_context("forkserver")
# `torch._dynamo` is half as large as torch again, and loaded by whatever makes an optimizer.
_PRELOADED = ["batchopt.cli.main", "batchopt.cli.train", "torch.distributed.fsdp", "torch._dynamo"]
_CONTEXT.set_forkserver_preload(_PRELOADED)


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that has ended."""

    code: int | None
    out: str
    err: str


PATIENCE = 900
"""Seconds after which processes count as hung: one minute is the longest on two free cores, and five on busy ones."""


def together(folder: Path, work: Callable[..., int | None], *arguments: object, count: int = 2) -> list[Ended]:
    """What `count` processes leave that each call `work(*arguments)`; it is of a module, so that they can import it."""
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    processes = [
        _CONTEXT.Process(target=_as_rank, args=(folder, rank, count, store.port, work, arguments))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
        process.kill()  # has no effect on one that has ended
        process.join()
    return [
        Ended(process.exitcode, *((folder / f"{name}{rank}").read_text() for name in ("out", "err")))
        for rank, process in enumerate(processes)
    ]


def by_torchrun(folder: Path, work: Callable[..., object], *arguments: object, count: int = 2) -> None:
    """Processes by torchrun's own agent, which ends the others once one fails; what they write is in `folder`.

    Raises:
        ChildFailedError: one did not end with 0, where torchrun would not either.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, run_id="test", rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        max_restarts=0, start_method="forkserver", logs_specs=DefaultLogsSpecs(str(folder), redirects=Std.ALL),
    )  # fmt: skip
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        elastic_launch(config, work)(*arguments)
    finally:
        for number, handler in handlers.items():
            if handler != signal.getsignal(number):
                signal.signal(number, handler)


def call(module: str, name: str, *arguments: object) -> int | None:
    """Call a function of a module that is imported here: by a process, after it has got the variables of torchrun."""
    code: int | None = getattr(import_module(module), name)(*arguments)
    return code


def started(folder: Path, work: Callable[..., int | None], *arguments: object) -> BaseProcess:
    """A process that calls `work(*arguments)`, writes to `folder / "out0"` and "err0", and heeds Ctrl-C."""
    process = _CONTEXT.Process(target=_as_command, args=(folder, work, arguments))
    process.start()
    return process


def _as_command(folder: Path, work: Callable[..., int | None], arguments: tuple[object, ...]) -> None:
    # Where the tests run in the background of a shell, Ctrl-C is ignored, and a child would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _end_with(folder, 0, work, arguments)


def _as_rank(
    folder: Path, rank: int, count: int, port: int, work: Callable[..., int | None], arguments: tuple[object, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count), "GROUP_WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    _end_with(folder, rank, work, arguments)


def _end_with(folder: Path, rank: int, work: Callable[..., int | None], arguments: tuple[object, ...]) -> None:
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}{rank}", os.O_WRONLY | os.O_CREAT), stream)
    torch.set_num_threads(1)
    code = work(*arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread of torch that wants the interpreter while that ends takes the process down with SIGABRT, now and then.
    os._exit(code or 0)


def answered(folder: Path, module: str) -> dict[str, Any]:
    """What a module's `answers(folder)` returns in two processes, which are "0" and "1", and "alone", in this one.

    The two write into one folder, and this one into another.
    """
    shared, alone = folder / "together", folder / "alone"
    for place in (shared, alone):
        place.mkdir()
    for ended in together(folder, _answer, shared, module):
        assert ended.code == 0, ended.err[-3_000:]
    # As JSON has it, too.
    by_one = json.loads(json.dumps(import_module(module).answers(alone)))
    return {"alone": by_one, **{rank: json.loads((shared / f"{rank}.json").read_text()) for rank in ("0", "1")}}


def _answer(folder: Path, module: str) -> None:
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=PATIENCE))
    answers = import_module(module).answers(folder)
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(answers))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()

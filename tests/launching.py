"""Starts the two processes of a test as torchrun would, from one that has torch, which takes seconds to import."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["batchopt.cli.main", "batchopt.cli.train", "torch.distributed.fsdp"])


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that has ended."""

    code: int | None
    out: str
    err: str


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
        process.join(300)
        process.kill()  # has no effect on one that has ended
        process.join()
    return [
        Ended(process.exitcode, *((folder / f"{name}{rank}").read_text() for name in ("out", "err")))
        for rank, process in enumerate(processes)
    ]


def _as_rank(
    folder: Path, rank: int, count: int, port: int, work: Callable[..., int | None], arguments: tuple[object, ...]
) -> None:
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}{rank}", os.O_WRONLY | os.O_CREAT), stream)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
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
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=300))
    answers = import_module(module).answers(folder)
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(answers))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()

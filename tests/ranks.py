"""Functions run by several processes on this machine, as torchrun would run them, but at once.

Starting a process that imports torch takes seconds. A fork server imports everything once a session and then forks.
"""

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PRELOADED = [
    "__main__",
    "torch",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "cosmos_ref.distributed.layout",
    "cosmos_ref.training.loop",
    "tests.ranks",
]
multiprocessing.set_forkserver_preload(PRELOADED)  # before anyone starts the server


class RanksFailed(RuntimeError):
    """What went wrong in the processes."""


def run_ranks(work: Callable[..., None], ranks: int, *arguments: Any, timeout: float = 90) -> None:
    """Call `work(*arguments)` in `ranks` processes that have joined, each with one thread.

    `work` belongs to a module and its arguments can be pickled. In it, `torch.distributed` is ready, and the
    environment is that of torchrun.

    Raises:
        RanksFailed: with the traceback of every process that failed, the first one first; the others are ended.
        torch.multiprocessing.ProcessExitedException: a process was killed.
        TimeoutError: they have not ended after so many seconds, and are killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = mp.start_processes(
            _rank, (ranks, folder, timeout, work, arguments), nprocs=ranks, join=False, start_method="forkserver"
        )
        assert context is not None
        end = time.monotonic() + timeout
        try:
            while not context.join(timeout=1):
                if time.monotonic() > end:
                    raise TimeoutError(f"{work.__name__} in {ranks} processes has not ended after {timeout} s")
        except mp.ProcessRaisedException as error:
            failed = sorted(Path(folder).glob("*.failed"), key=lambda path: path.stat().st_mtime_ns)
            raise RanksFailed("\n".join(f"process {path.stem}:\n{path.read_text()}" for path in failed)) from error
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.kill()


def _rank(rank: int, ranks: int, folder: str, timeout: float, work: Callable[..., None], arguments: tuple) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
    store = dist.FileStore(str(Path(folder) / "store"), ranks)  # a file, so that no port must be free
    limit = timedelta(seconds=timeout)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=limit)
    try:
        work(*arguments)
        dist.barrier()
    except BaseException:
        Path(folder, f"{rank}.failed").write_text(traceback.format_exc())  # before the others notice
        raise
    finally:
        dist.destroy_process_group()

"""Kill a training with signal 9 at random moments, resume it each time, and compare it with an undisturbed one.

    python benchmarks/kill_and_resume.py 100
    python benchmarks/kill_and_resume.py 20 --ranks 2

The weights, their average, the optimizer's moments and the log must be the same to the bit. Every third kill waits
for a checkpoint to be half written. Of many processes now one is killed, which the others must notice and end, now all.
All processes use one thread: another number of threads rounds differently.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from cosmos_ref.checkpoint import find_checkpoint, read_checkpoint

TRAIN = """
import dataclasses, sys
from cosmos_ref.commands.train import chosen_layout
from cosmos_ref.config import PRESETS, ParallelConfig
from cosmos_ref.training.sources import WorldSource
from cosmos_ref.training.loop import train
config = PRESETS["micro"]
config = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=24, checkpoint_every=4))
source = WorldSource(config.clip, config.data.world, config.train.seed)
print("ready", flush=True)
with chosen_layout(ParallelConfig(), config, "cpu") as layout:
    train(config, sys.argv[1], source, layout=layout, resume=True, progress=False)
"""
TIMINGS = ("seconds", "clips_per_second", "tokens_per_second", "tflops", "data_wait", "memory_gib")
"""Entries of the log that differ from run to run."""
NOTICED = 90
"""Seconds within which the other processes must have ended when one was killed."""


def start(out: Path, ranks: int) -> list[subprocess.Popen]:
    """The processes of a training, when they are about to train."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if ranks > 1:  # what torchrun tells them
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, "-c", TRAIN, str(out)]
        said = out.with_name(f"said_{rank}").open("w")
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=said, text=True))
    for process in processes:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"the training did not start: {what_was_said(out)}")
    return processes


def what_was_said(out: Path) -> str:
    """What the processes of the last training said."""
    return "\n".join(path.read_text()[-3000:] for path in sorted(out.parent.glob("said_*")))


def wait(processes: list[subprocess.Popen], seconds: float | None = None) -> bool:
    """Whether all of them ended in time."""
    end = None if seconds is None else time.monotonic() + seconds
    try:
        for process in processes:
            process.wait(None if end is None else max(0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def kill(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.kill()
    wait(processes)


def result(out: Path) -> dict:
    """Checksums of all tensors of the last checkpoint, and the log without its timings."""
    records = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    records = [{name: value for name, value in record.items() if name not in TIMINGS} for record in records]
    # Of tensors, not of files: torch's writer of shards leaves the order of their headers to chance.
    tensors = {
        f"{group}.{name}": hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy()).hexdigest()
        for group, tensors in read_checkpoint(find_checkpoint(out)).tensors.items()
        for name, tensor in tensors.items()
    }
    return tensors | {"train.jsonl": records}


def is_writing(out: Path, since: float) -> bool:
    """Whether a checkpoint is half written, and not by a process that was killed before `since`."""
    with contextlib.suppress(FileNotFoundError):  # it was finished meanwhile
        return any(path.stat().st_mtime > since for path in out.glob("checkpoints/.step_*.partial/**/*"))
    return False


def main(kills: int, ranks: int, seed: int) -> None:
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        undisturbed, out = Path(folder) / "undisturbed", Path(folder) / "disturbed"
        processes, began = start(undisturbed, ranks), time.time()
        wait(processes)
        if any(process.returncode for process in processes):
            raise SystemExit(f"the undisturbed training failed: {what_was_said(undisturbed)}")
        duration = time.time() - began
        expected = result(undisturbed)
        done = rounds = while_writing = alone = 0
        while done < kills or rounds == 0:
            processes, began = start(out, ranks), time.time()
            if done < kills and done % 3 == 2:
                while any(process.poll() is None for process in processes) and not is_writing(out, began):
                    time.sleep(0.0005)
            else:
                wait(processes, draw.uniform(0, duration / 3) if done < kills else None)
            running = [process for process in processes if process.poll() is None]
            if len(running) == ranks:
                while_writing += is_writing(out, began)
                if ranks > 1 and done % 2 == 0:
                    alone += 1
                    kill([running.pop(draw.randrange(ranks))])
                    if not wait(running, NOTICED):
                        kill(running)
                        raise SystemExit(f"a process was killed, and the others did not end within {NOTICED} s")
                kill(running)
                done += 1
                continue
            wait(processes)
            if any(process.returncode for process in processes):
                raise SystemExit(f"resuming failed after {done} kills: {what_was_said(out)}")
            rounds += 1
            if (found := result(out)) != expected:
                differ = [name for name in expected if found.get(name) != expected[name]]
                raise SystemExit(f"after {done} kills the training ended with other {', '.join(differ)}")
            if done < kills:
                shutil.rmtree(out)  # it came through: begin again
    of_one = f", {alone} of one process of {ranks}" if ranks > 1 else ""
    print(
        f"{done} kills{of_one}, {while_writing} of them while a checkpoint was written; "
        f"{rounds} trainings ended identically"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int, nargs="?", default=10)
    parser.add_argument("--ranks", type=int, default=1, help="processes that train together")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.kills, arguments.ranks, arguments.seed)

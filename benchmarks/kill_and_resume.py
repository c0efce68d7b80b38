"""Kill a training with signal 9 at random moments, resume it each time, and compare it with an undisturbed one.

    python benchmarks/kill_and_resume.py 100

The weights, their average, the optimizer's moments and the log must be the same to the bit. Every third kill waits
for a checkpoint to be half written. All processes use one thread: another number of threads rounds differently.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRAIN = """
import dataclasses, sys
from cosmos_ref.config import PRESETS
from cosmos_ref.training.sources import WorldSource
from cosmos_ref.training.loop import train
config = PRESETS["micro"]
config = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=24, checkpoint_every=4))
source = WorldSource(config.clip, config.data.world, config.train.seed)
print("ready", flush=True)
train(config, sys.argv[1], source, resume=True, progress=False)
"""


def start(out: Path) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(out)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise SystemExit("the training did not start")
    return process


def result(out: Path) -> dict:
    """Checksums of all tensors of the last checkpoint, and the log without its timings."""
    last = max(out.glob("checkpoints/step_*"))
    files = json.loads((last / "manifest.json").read_text())["files"]
    records = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    for record in records:
        del record["clips_per_second"]
    tensors = {name: entry for name, entry in files.items() if name.endswith(".safetensors")}
    return tensors | {"train.jsonl": records}


def is_writing(out: Path, since: float) -> bool:
    """Whether a checkpoint is half written, and not by a process that was killed before `since`."""
    with contextlib.suppress(FileNotFoundError):  # it was finished meanwhile
        return any(path.stat().st_mtime > since for path in out.glob("checkpoints/.step_*.partial/*"))
    return False


def main(kills: int, seed: int) -> None:
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        undisturbed, out = Path(folder) / "undisturbed", Path(folder) / "disturbed"
        process, began = start(undisturbed), time.time()
        if process.wait() != 0:
            raise SystemExit("the undisturbed training failed")
        duration = time.time() - began
        expected = result(undisturbed)
        done = rounds = while_writing = 0
        while done < kills or rounds == 0:
            process, began = start(out), time.time()
            if done < kills and done % 3 == 2:
                while process.poll() is None and not is_writing(out, began):
                    time.sleep(0.0005)
            else:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(draw.uniform(0, duration / 3) if done < kills else None)
            if process.poll() is None:
                process.kill()
                process.wait()
                done += 1
                while_writing += is_writing(out, began)
            elif process.returncode != 0:
                raise SystemExit(f"resuming failed after {done} kills")
            else:
                rounds += 1
                if (found := result(out)) != expected:
                    differ = [name for name in expected if found[name] != expected[name]]
                    raise SystemExit(f"after {done} kills the training ended with other {', '.join(differ)}")
                if done < kills:
                    shutil.rmtree(out)  # it came through: begin again
    print(f"{done} kills, {while_writing} of them while a checkpoint was written; {rounds} trainings ended identically")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int, nargs="?", default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.kills, arguments.seed)

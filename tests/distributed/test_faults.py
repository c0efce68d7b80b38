"""Whatever happens to a training of many processes, it goes on as if nothing had, or all of them say one thing."""

import contextlib
import dataclasses
import io
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import ProcessExitedException

from cosmos_ref import checkpoint, cli
from cosmos_ref.checkpoint import find_checkpoint, list_checkpoints, read_checkpoint
from cosmos_ref.config import PRESETS, ParallelConfig
from cosmos_ref.distributed import layout as layouts
from cosmos_ref.errors import UserError
from cosmos_ref.training import loop
from cosmos_ref.training.log import TrainingLog
from cosmos_ref.training.sources import WorldSource
from tests.ranks import RanksFailed, run_ranks

ROOT = Path(__file__).parents[2]
MICRO = PRESETS["micro"]
CONFIG = dataclasses.replace(
    MICRO, train=dataclasses.replace(MICRO.train, num_steps=8, checkpoint_every=2, keep_checkpoints=2)
)
KILLED = ProcessExitedException, RanksFailed
"""What `run_ranks` raises when processes were killed: of those, or of the others that lost them."""
NAN_SAMPLE = 18
"""In the fifth update of four samples, and in the second process's share of it."""


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_random(seconds):
    """All processes, at some moment."""
    threading.Timer(seconds, kill_itself).start()


def kill_in_step(step):
    """The second process, when it has begun an update and the first waits for it."""
    advance = loop.advance

    def killed(run, *arguments):
        if run.step == step and dist.get_rank() == 1:
            kill_itself()
        return advance(run, *arguments)

    loop.advance = killed


def kill_while_writing(name):
    """All processes, when the shards of checkpoint `name` are written and the rest is not."""
    own_shards = checkpoint._own_shards

    def killed(folder, groups):
        if name in folder.name:
            kill_itself()
        return own_shards(folder, groups)

    checkpoint._own_shards = killed


def fill_disk(step):
    """The second process can write no long files from this step on."""
    advance = loop.advance

    def filled(run, *arguments):
        if run.step == step and dist.get_rank() == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, 2**14))
        return advance(run, *arguments)

    loop.advance = filled


def spoil(sample):
    """A clip is not a number."""
    clips = WorldSource.clips

    def spoiled(self, indices, domain="video", bucket=None):
        found = clips(self, indices, domain, bucket)
        for i, index in enumerate(indices):
            if index == sample:
                found.video[i] = float("nan")
        return found

    WorldSource.clips = spoiled


def train_here(out, disturb=None, *arguments):
    """In each of several processes: train, or go on. What is changed here ends with the process."""
    TrainingLog.draw = lambda log: None
    if disturb:
        disturb(*arguments)
    source = WorldSource(CONFIG.clip, CONFIG.data.world, CONFIG.train.seed)
    layout = layouts.ManyProcesses(ParallelConfig(), CONFIG.model.num_heads, torch.device("cpu"))
    loop.train(CONFIG, out, source, layout=layout, resume=True, progress=False)


def fail_here(out, kind, says, disturb, *arguments):
    """The training fails, and each process writes down how."""
    with pytest.raises(kind) as error:
        train_here(out, disturb, *arguments)
    told = [None] * dist.get_world_size()
    dist.all_gather_object(told, str(error.value))
    assert re.search(says, told[0], re.DOTALL), told[0]  # the first process is the one that is heard


def tensors(run):
    found = read_checkpoint(find_checkpoint(run)).tensors
    return {f"{group}.{name}": tensor for group, tensors in found.items() for name, tensor in tensors.items()}


def assert_same_bits(run, expected):
    found, wanted = tensors(run), tensors(expected)
    assert found.keys() == wanted.keys()
    assert [name for name, tensor in wanted.items() if not torch.equal(found[name], tensor)] == []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    run_ranks(train_here, 2, out)
    return out


def test_three_kills_end_in_the_same_bits(undisturbed, tmp_path):
    """One in the middle of an update; all while a checkpoint is written; all at a random moment after that."""
    for how, when in ((kill_in_step, 3), (kill_while_writing, "step_0000006")):
        with pytest.raises(KILLED):
            run_ranks(train_here, 2, tmp_path, how, when)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_0000002", "step_0000004"]
    assert (tmp_path / "checkpoints" / ".step_0000006.partial" / "model").is_dir()
    with contextlib.suppress(*KILLED):  # it may come through
        run_ranks(train_here, 2, tmp_path, kill_at_random, random.SystemRandom().uniform(0.1, 2))
    run_ranks(train_here, 2, tmp_path)
    assert_same_bits(tmp_path, undisturbed)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step_0000006", "step_0000008"}


def test_a_full_disk_of_one_process_ends_the_training_with_all_that_was_finished(undisturbed, tmp_path):
    says = "step_0000006 was not written .process 1: .*File too large.*earlier ones are kept.*--resume"
    run_ranks(fail_here, 2, tmp_path, OSError, says, fill_disk, 4)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step_0000002", "step_0000004"}
    run_ranks(train_here, 2, tmp_path)
    assert_same_bits(tmp_path, undisturbed)


def test_a_clip_that_is_not_a_number_stops_all_and_the_first_names_it(tmp_path):
    says = f"process 1: .*step 5: loss is nan.*video samples {NAN_SAMPLE} are not finite: take them out"
    run_ranks(fail_here, 2, tmp_path, RuntimeError, says, spoil, NAN_SAMPLE)
    assert read_checkpoint(find_checkpoint(tmp_path), ()).state["step"] == 4
    assert all(torch.isfinite(tensor).all() for tensor in tensors(tmp_path).values())


def command(folder, arguments, disturb=None, *disturbance):
    """In each of several processes: the command line, which finds that torchrun has started it."""
    layouts.joined = lambda device: contextlib.nullcontext(torch.device(device))  # run_ranks has
    TrainingLog.draw = lambda log: None
    if disturb:
        disturb(*disturbance)
    heard = io.StringIO()
    with contextlib.redirect_stderr(heard), contextlib.redirect_stdout(heard):
        try:
            cli.main(arguments)
            code = 0
        except SystemExit as exit:
            code = exit.code
    (folder / f"heard_{dist.get_rank()}").write_text(f"{code}\n{heard.getvalue()}")


def heard_from(tmp_path, arguments, *disturbance):
    arguments = ["train", "--preset", "micro", "--out", str(tmp_path / "run"), *arguments]
    run_ranks(command, 2, tmp_path, arguments, *disturbance)
    return [(tmp_path / f"heard_{rank}").read_text().split("\n", 1) for rank in range(2)]


@pytest.mark.parametrize(
    ("arguments", "disturbance", "code", "says"),
    [
        (["--parallel.cp", "3"], (), 2, "--parallel.cp 3 must divide the 2 processes"),
        (["--train.batch-size", "3"], (), 2, "train.batch_size 3"),
        (["--train.colour", "red"], (), 2, "colour"),
        ([], (spoil, 2), 1, "video samples 2 are not finite"),
        (["--train.checkpoint-every", "1"], (fill_disk, 0), 1, "File too large"),
    ],
    ids=["usage", "batch", "parsing", "nan", "disk"],
)
def test_the_first_of_all_processes_says_what_went_wrong_once(tmp_path, arguments, disturbance, code, says):
    (first, message), (second, silence) = heard_from(tmp_path, arguments, *disturbance)
    assert (int(first), int(second)) == (code, code)
    # The parser of the command line has a frame of its own.
    assert message.count("cosmos-ref:") == (says != "colour") and says in message, (
        message
    )  # the parser has its own frame
    assert "Traceback" not in message
    assert says not in silence and "cosmos-ref" not in silence, silence


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_torchrun_restarts_from_the_last_checkpoint_when_a_process_is_killed(undisturbed, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    training = ["-m", "cosmos_ref.cli", "train", "--preset", "micro", "--resume", "--out", str(tmp_path)]
    settings = ["--train.num-steps", "8", "--train.checkpoint-every", "2", "--train.keep-checkpoints", "2"]
    with (tmp_path / "said").open("w") as said:
        torchrun = subprocess.Popen([*launch, *training, *settings], stdout=said, stderr=said, cwd=ROOT)
        try:
            end = time.monotonic() + 200
            while not list_checkpoints(tmp_path) and torchrun.poll() is None and time.monotonic() < end:
                time.sleep(0.002)
            os.kill(process_of_rank(1, torchrun.pid), signal.SIGKILL)
            torchrun.wait(200)
        finally:
            torchrun.terminate()  # and it ends its processes
            torchrun.wait(60)
    heard = (tmp_path / "said").read_text()
    assert torchrun.returncode == 0, heard
    assert "exitcode: -9" in heard, heard
    assert_same_bits(tmp_path, undisturbed)


def test_torchrun_on_several_nodes_is_told_what_restarts_need(monkeypatch):
    """It counts restarts on each node for itself, so that none can tell old addresses in its store from new ones."""
    torchruns = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 4, "GROUP_WORLD_SIZE": 2, "TORCHELASTIC_MAX_RESTARTS": 1}
    for name, value in torchruns.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(UserError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"), layouts.joined("cpu"):
        pass


def process_of_rank(rank, launcher):
    """Among the children of a launcher."""
    (children,) = Path(f"/proc/{launcher}/task").glob(f"{launcher}/children")
    for pid in children.read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0"):
            return int(pid)
    raise AssertionError(f"{launcher} has no process of rank {rank}")

"""Memory that the tokenizer CV8x8x8 takes on a CPU in float32, against what its plan says.

    python benchmarks/tokenizer_memory.py    # some fifteen minutes on two cores

Each figure is the most a fresh process ever held, less what it held once everything was imported (Linux only).
Weights are random: their values do not change the memory.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch

from cosmos_ref.config import TOKENIZERS
from cosmos_ref.equations.causal import latent_length
from cosmos_ref.tokenizer.continuous import ContinuousTokenizer
from cosmos_ref.tokenizer.pieces import decode_in_pieces, encode_in_pieces
from cosmos_ref.tokenizer.plan import Plan, plan_tokenizer, working_bytes

CONFIG = TOKENIZERS["CV8x8x8"]
GIB = 2**30
# frames, height, width, latent frames at once, tile's height and width
CASES = [
    (1, 704, 1280, 1, 704, 1280),
    (17, 256, 256, 3, 256, 256),
    (33, 256, 384, 5, 256, 384),
    (33, 256, 384, 1, 256, 384),
    (25, 352, 640, 2, 352, 640),
    (17, 704, 1280, 1, 704, 1280),
    (9, 704, 1280, 1, 256, 384),
]


def predicted(frames: int, height: int, width: int, chunk: int, tile_height: int, tile_width: int) -> Plan:
    """The plan of a case, with what it will take."""
    grid = (latent_length(frames, 8), height // 8, width // 8)
    working = working_bytes(CONFIG, grid, chunk, (tile_height // 8, tile_width // 8), torch.float32)
    weights = plan_tokenizer(CONFIG, 1, 8, 8, float("inf")).weight_bytes
    return Plan(chunk, tile_height, tile_width, weights, working)


def resident() -> int:
    """Bytes this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def child(direction: str, frames: int, height: int, width: int, chunk: int, tile_height: int, tile_width: int) -> None:
    """Run one case in this process and print the bytes it took."""
    before = resident()
    generator = torch.Generator().manual_seed(0)
    tokenizer = ContinuousTokenizer(CONFIG).requires_grad_(False)
    plan = Plan(chunk, tile_height, tile_width)
    if direction == "encode":
        encode_in_pieces(tokenizer, 2 * torch.rand(1, 3, frames, height, width, generator=generator) - 1, plan)
    else:
        shape = (1, 16, latent_length(frames, 8), height // 8, width // 8)
        decode_in_pieces(tokenizer, torch.randn(shape, generator=generator), plan)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)


def measured(direction: str, case: tuple[int, ...]) -> int:
    """Bytes that a case takes in a fresh process."""
    command = [sys.executable, __file__, "--child", json.dumps([direction, *case])]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(run.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return 0
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; GiB, weights included")
    print("clip             at once  tile      predicted  encode  decode  predicted/measured")
    worst = 0
    for case in CASES:
        frames, height, width, chunk, *tile = case
        plan = predicted(*case)
        encode, decode = (measured(direction, case) for direction in ("encode", "decode"))
        ratio = plan.peak_bytes / max(encode, decode)
        worst = max(worst, 1 / ratio)
        sizes = " ".join(f"{size / GIB:9.2f}" for size in (plan.peak_bytes, encode, decode))
        print(
            f"{frames:3}x{height}x{width:<8} {chunk:7}  {'x'.join(map(str, tile)):9} {sizes} {ratio:9.2f}", flush=True
        )
    return int(worst > 1)


if __name__ == "__main__":
    sys.exit(main())

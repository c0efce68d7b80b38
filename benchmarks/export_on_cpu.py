"""What exported graphs gain on a CPU: ONNX Runtime's variants beside PyTorch's eager mode, in turns.

    python benchmarks/export_on_cpu.py                         # some minutes on two cores that do nothing else
    python benchmarks/export_on_cpu.py --depth 1 --rounds 2 --long-rounds 0 --write tried.json    # to try it

A model of width 256, 8 blocks and 4 heads, random weights, one sample a call: 1,024 tokens, and 4,096 to see memory.
Everything is written to a JSON file with machine, versions and date, and held against what was aimed at.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import tyro
from cosmos_export.benchmark import Case, Request, benchmark
from cosmos_export.speed_table import text, write_json
from cosmos_export.to_onnx import export_bundle
from cosmos_export.turns import Entry

from cosmos_ref.blocks.attention import RMSNorm
from cosmos_ref.blocks.modulation import AdaLNLoRA
from cosmos_ref.commands.benchmark import peak_entry, torch_entries
from cosmos_ref.config import Config, HaarPCAConfig, preset
from cosmos_ref.demo.machine import describe_machine, versions
from cosmos_ref.model.denoiser import Denoiser
from cosmos_ref.model.initialization import new_model
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer

RESULTS = Path(__file__).parent / "results" / "export_on_cpu.json"
VARIANTS = ("fp32", "cpu", "cpu-int8")
CLIP, LONG_CLIP = "7x128x128", "31x128x128"
TARGETS = {"ONNX Runtime fp32": 1.0, "ONNX Runtime cpu": 1.2, "ONNX Runtime cpu-int8": 1.6}
"""Times as fast as eager mode at about 1,000 tokens."""


def main(depth: int = 8, rounds: int = 20, long_rounds: int = 3, threads: int = 0, write: Path = RESULTS) -> None:
    """Export, measure, compare with the targets.

    Args:
        depth: blocks of the model.
        rounds: turns of every row at 1,024 tokens.
        long_rounds: the same at 4,096; 0 leaves them out.
        threads: of the CPU; 0 is OMP_NUM_THREADS where that is set, else one per core.
        write: JSON file for what was measured.
    """
    config, load = model(depth), partial(random_denoiser, depth)
    tables = []

    def eager(case: Case) -> list[Entry]:
        return torch_entries(load, config, case.inputs, "cpu", "fp32")

    with TemporaryDirectory() as folder:
        bundle, tokenizer = Path(folder) / "bundle", any_tokenizer(config)
        export_bundle(config, load(), tokenizer, bundle, variants=VARIANTS, verify=False, say=print)
        peak, operations = peak_entry("cpu")
        for clip, count in ((CLIP, rounds), (LONG_CLIP, long_rounds)):
            if count:
                request = Request(bundle, sizes=[clip], batch=1, rounds=count, threads=threads)
                tables += benchmark(request, peak, operations, eager, lambda line: print(line, flush=True))
                print(text(tables[-1]), flush=True)
    ratios = {row["name"]: row.get("ratio") for row in tables[0]["rows"]}
    reached = {name: {"target": target, "ratio": ratios[name]} for name, target in TARGETS.items()}
    print(json.dumps(reached, indent=1))
    machine = describe_machine() | {"threads": threads}
    write_json(write, tables, machine, versions(), model=f"width 256, depth {depth}, 4 heads", targets=reached)


def model(depth: int) -> Config:
    """The model's numbers."""
    config = preset("tiny")
    return replace(config, model=replace(config.model, width=256, depth=depth, num_heads=4))


@torch.no_grad()
def random_denoiser(depth: int) -> Denoiser:
    """Weights that are nowhere zero or one, as those before training are, which hide what they multiply."""
    generator = torch.Generator().manual_seed(0)
    denoiser, _ = new_model(model(depth), generator)
    return without_zeros(denoiser, generator).eval().requires_grad_(False)


def without_zeros(denoiser: Denoiser, generator: torch.Generator) -> Denoiser:
    """A new model with random numbers where a training begins with zeros and ones."""
    for module in denoiser.modules():
        if isinstance(module, AdaLNLoRA):
            module.up.weight.normal_(std=0.1, generator=generator)
        elif isinstance(module, RMSNorm):
            module.weight.uniform_(0.5, 2, generator=generator)
    return denoiser


def any_tokenizer(config: Config) -> HaarPCATokenizer:
    """One that is fitted to noise."""
    assert isinstance(config.tokenizer, HaarPCAConfig)
    return HaarPCATokenizer.fit(config.tokenizer, 2 * torch.rand(2, 3, 9, 32, 32) - 1)


if __name__ == "__main__":
    tyro.cli(main)

"""One small model, exported once: the bundle that all tests of this folder read."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from cosmos_export.bundle import Bundle
from cosmos_export.to_onnx import export_bundle, write_tokenizer
from filelock import FileLock  # PyTorch depends on it

from cosmos_ref.blocks.attention import RMSNorm
from cosmos_ref.blocks.modulation import AdaLNLoRA
from cosmos_ref.config import Config, preset
from cosmos_ref.model.denoiser import Denoiser
from cosmos_ref.model.initialization import new_model
from cosmos_ref.tokenizer.continuous import ContinuousTokenizer
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer
from tests.tokenizer.small import SMALL, drawn_tokenizer

VARIANTS = ("fp32", "cpu", "fp16", "bf16", "int8", "fp8", "cpu-int8")
"""Of the denoiser; the tokenizer of this model has fp32 only."""


@dataclass(frozen=True)
class Exported:
    """The modules in PyTorch, and the bundle made of them."""

    config: Config
    denoiser: Denoiser
    tokenizer: HaarPCATokenizer
    path: Path
    bundle: Bundle


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Exported:
    config, generator = preset("micro"), torch.Generator().manual_seed(0)
    denoiser, _ = new_model(config, generator)
    with torch.no_grad():
        for module in denoiser.modules():  # a model before training has zeros and ones, which hide what they multiply
            if isinstance(module, AdaLNLoRA):
                module.up.weight.normal_(std=0.3, generator=generator)
            elif isinstance(module, RMSNorm):
                module.weight.uniform_(0.5, 2, generator=generator)
    denoiser.eval().requires_grad_(False)
    video = torch.rand(4, 3, 5, 16, 16, generator=generator) * 2 - 1
    tokenizer = HaarPCATokenizer.fit(config.tokenizer, video)

    def export(path: Path) -> None:
        export_bundle(config, denoiser, tokenizer, path, variants=VARIANTS)

    path = made_once("exported", tmp_path_factory, export)
    return Exported(config, denoiser, tokenizer, path, Bundle.load(path, threads=1))


@dataclass(frozen=True)
class Convolutional:
    """A small convolutional tokenizer, and a folder with its graphs in three types."""

    config: Config
    tokenizer: ContinuousTokenizer
    path: Path


@pytest.fixture(scope="session")
def convolutional(tmp_path_factory) -> Convolutional:
    # every kind of layer once, and statistics for three latent frames
    fewer = dict(strides=((2, 2),), encoder_widths=(6, 8, 10), decoder_widths=(10, 8, 6), channels=16)
    small, clip = replace(SMALL["CV4x8x8"], **fewer), replace(preset("micro").clip, frames=9, height=16, width=24)
    config = replace(preset("micro"), tokenizer=small, clip=clip)
    tokenizer = drawn_tokenizer(small).float().eval().requires_grad_(False)

    def export(path: Path) -> None:
        path.mkdir()
        write_tokenizer(config, tokenizer, ("fp32", "fp16", "bf16"), path, lambda line: None)

    return Convolutional(config, tokenizer, made_once("convolutional", tmp_path_factory, export))


def made_once(name: str, tmp_path_factory, make: Callable[[Path], None]) -> Path:
    """A folder that the first worker makes, while the others wait."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # one for all workers of this run
    with FileLock(base / f"{name}.lock"):
        if not (base / name).exists():
            make(base / f"{name}.partial")
            (base / f"{name}.partial").rename(base / name)
    return base / name

"""One small model, exported once: the bundle that all tests of this folder read."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from cosmos_export.bundle import Bundle
from cosmos_export.to_onnx import export_bundle
from filelock import FileLock  # PyTorch depends on it

from cosmos_ref.blocks.attention import RMSNorm
from cosmos_ref.blocks.modulation import AdaLNLoRA
from cosmos_ref.config import Config, preset
from cosmos_ref.model.denoiser import Denoiser
from cosmos_ref.model.initialization import new_model
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer


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
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder  # one for all workers of this run
    path = folder / "exported"
    with FileLock(folder / "exported.lock"):  # the first worker exports, the others wait
        if not path.exists():
            export_bundle(config, denoiser, tokenizer, path)
    return Exported(config, denoiser, tokenizer, path, Bundle.load(path, threads=1))

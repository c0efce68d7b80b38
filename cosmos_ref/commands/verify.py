"""cosmos-ref verify: whether the variants of a bundle do what they promise."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from cosmos_ref.errors import UserError

if TYPE_CHECKING:
    from cosmos_export.sides import Side

BROKEN = 1
"""Exit code where a contract is broken."""


def verify(
    bundle: Annotated[Path, tyro.conf.Positional],
    weights: Path | None = None,
    variants: tuple[str, ...] = (),
    reference: str | None = None,
    layers: bool = False,
    steps: int = 35,
    json: Path | None = None,
    backend: Literal["onnxruntime", "tensorrt"] = "onnxruntime",
    provider: str = "cpu",
    profile: str | None = None,
    threads: int = 0,
) -> None:
    """Compare variants of a bundle with PyTorch, or with one of them: calls, a whole sampling, and layer by layer.

    The exit code is 1 where a contract is broken; the first layer that drifts is named then.

    Args:
        bundle: folder written by `cosmos-ref export`.
        weights: folder of the checkpoint or training run that it was made from, to compare with PyTorch.
        variants: what is compared; all, if none is named.
        reference: what they are compared with: torch, or a variant; without it torch if there are --weights, else fp32.
        layers: print how far every layer is off, although the contract holds.
        steps: of the sampling.
        json: file to write what was measured to.
        backend: what runs the variants: onnxruntime or tensorrt.
        provider: of ONNX Runtime: cpu, cuda, tensorrt.
        profile: sizes to stay in; TensorRT has an engine for each.
        threads: of ONNX Runtime; 0 is one per core.
    """
    try:
        from cosmos_export.errors import BundleError
        from cosmos_export.verify import check_json, levels_of, report, show, verify_bundle, write_json
    except ImportError as error:
        raise UserError(
            f"verifying needs another package ({error}): pip install 'cosmos-ref[export]' ./export"
        ) from None
    reference = reference or ("fp32" if weights is None else "torch")
    if (reference == "torch") != (weights is not None):
        raise UserError(
            "comparing with PyTorch needs --weights, the folder that the bundle was exported from, and only that does"
        )
    try:
        check_json(json)
        side = reference if weights is None else torch_side(weights)
        place = dict(backend=backend, provider=provider, profile=profile, threads=threads)
        result = verify_bundle(bundle, variants, side, layers=layers, steps=steps, say=show, **place)
        show("")
        print("\r" + report(result, reference, levels_of(bundle)))
    except BundleError as error:
        raise UserError(str(error)) from error
    if json is not None:
        write_json(json, result, reference)
    if not all(done.ok for done in result.values()):
        sys.exit(BROKEN)


def torch_side(weights: Path) -> "Side":
    """The denoiser of a checkpoint in PyTorch, in float32."""
    import torch
    from cosmos_export.compare import torch_call
    from cosmos_export.sides import LAYERS, Side

    from cosmos_ref.adapter import require_merged
    from cosmos_ref.checkpoint import find_checkpoint, read_checkpoint
    from cosmos_ref.pipelines.world_model import checkpoint_parts, require_parts

    folder = find_checkpoint(weights)
    config = read_checkpoint(folder, names=()).config
    require_merged(config, weights, "a bundle")
    wide = replace(config, sample=replace(config.sample, precision="fp32"))
    load, _ = checkpoint_parts(folder, wide, torch.device("cpu"), None)
    require_parts(load, folder)
    denoiser = load["denoiser"]()
    call = torch_call(denoiser)

    def layers(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(module: Any, given: Any, out: torch.Tensor) -> None:
                found[name] = out.numpy()

            return hook

        watched = [
            module.register_forward_hook(keep(name))
            for name, module in denoiser.named_modules()
            if isinstance(module, torch.nn.Linear) and name.endswith(LAYERS)
        ]
        try:
            call(inputs)
        finally:
            for hook in watched:
                hook.remove()
        return found

    return Side("torch", call, layers)

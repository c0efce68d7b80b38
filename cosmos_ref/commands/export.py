"""cosmos-ref export: a trained model becomes a folder that runs without PyTorch."""

import json
from pathlib import Path

from rich.console import Console

from cosmos_ref.errors import UserError


def export(weights: Path, out: Path, t5: Path | None = None) -> None:
    """Write the denoiser and the tokenizer as ONNX, with measured parity.

    Args:
        weights: folder of a checkpoint or of a training run.
        out: folder of the bundle.
        t5: local folder of the T5 encoder, for presets that use it.
    """
    try:
        from cosmos_export.card import parity_rows
        from cosmos_export.compare import Parity, table
        from cosmos_export.to_onnx import export_bundle
    except ImportError as error:
        raise UserError(
            f"exporting needs another package ({error}): pip install 'cosmos-ref[export]' ./export"
        ) from None
    from cosmos_ref.adapter import require_merged
    from cosmos_ref.checkpoint import find_checkpoint, read_checkpoint
    from cosmos_ref.pipelines.world_model import load_world_model

    require_merged(read_checkpoint(find_checkpoint(weights), names=()).config, weights, "a bundle")
    model = load_world_model(weights, t5)
    export_bundle(model.config, model.denoiser, model.tokenizer, out)
    print(table([Parity(**row) for row in parity_rows(json.loads((out / "manifest.json").read_text()))]))
    Console().print(f"{out}: run it without PyTorch by `python -m cosmos_export.runtime {out} --help`", soft_wrap=True)

"""Text embeddings computed beforehand: a table from prompt to rows, in a safetensors file."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cosmos_ref.conditioning.text import TextEncoder
from cosmos_ref.config import TextConfig
from cosmos_ref.errors import UserError


class TextTable:
    """Looks prompts up instead of encoding them, so that the text encoder need not be there.

    Args:
        file: safetensors in which each tensor is called like its prompt: `M E` or `1 M E`, up to `length` rows.
        text: length and width the model takes.

    Raises:
        UserError: the file cannot be read, or an embedding is too long, of another width or not finite.
    """

    def __init__(self, file: str | Path, text: TextConfig):
        self.length, self.width = text.length, text.width
        self.file = file
        if not Path(file).is_file():
            raise UserError(f"text embeddings {file} do not exist: write them by `cosmos-ref encode-text`")
        self.rows: dict[str, Tensor] = {}
        try:
            with safe_open(file, framework="pt") as table:
                for prompt in table.keys():  # noqa: SIM118 (not a mapping)
                    self.rows[prompt] = self._checked(prompt, table.get_tensor(prompt))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is no whole safetensors file ({error}): write the embeddings again") from None

    def encode(self, prompts: Sequence[str | None]) -> Float[Tensor, "B M E"]:
        """The embeddings of each prompt as float32, zeros behind its rows; None is the null text, all zeros.

        Raises:
            UserError: a prompt is not in the file.
        """
        embeddings = torch.zeros(len(prompts), self.length, self.width)
        for row, prompt in zip(embeddings, prompts, strict=True):
            if prompt is None:
                continue
            if prompt not in self.rows:
                known = ", ".join(repr(known) for known in list(self.rows)[:3])
                more = f" and {len(self.rows) - 3} more" if len(self.rows) > 3 else ""
                raise UserError(f"{self.file} has no embedding of {prompt!r}; it has those of {known}{more}")
            row[: len(self.rows[prompt])] = self.rows[prompt]
        return embeddings

    def to(self, device: torch.device | str) -> "TextTable":
        """Itself: looking up runs nowhere."""
        return self

    def _checked(self, prompt: str, rows: Tensor) -> Tensor:
        rows = rows[0] if rows.ndim == 3 and len(rows) == 1 else rows
        if rows.ndim != 2 or len(rows) > self.length or rows.shape[1] != self.width:
            raise UserError(
                f"{self.file}: the embedding of {prompt!r} has shape {tuple(rows.shape)}; "
                f"this model takes up to {self.length} rows of {self.width}"
            )
        if not rows.is_floating_point() or not torch.isfinite(rows).all():
            raise UserError(f"{self.file}: the embedding of {prompt!r} is not made of finite numbers: write it again")
        return rows.float()


def check_text_table(file: str | Path) -> Path:
    """Return `file` if `write_text_table` can write it; call it before the text encoder is loaded.

    Raises:
        UserError: another suffix than .safetensors, a folder, or in a folder that is not there.
    """
    file = Path(file)
    if file.suffix != ".safetensors":
        raise UserError(f"{file} does not end in .safetensors: text embeddings are written as that")
    if not file.parent.is_dir():
        raise UserError(f"folder {file.parent} does not exist: make it first")
    if file.is_dir():
        raise UserError(f"{file} is a folder: give the name of a file")
    return file


def write_text_table(file: str | Path, encoder: TextEncoder, prompts: Sequence[str]) -> Path:
    """Encode prompts once and for all; the rows of zeros behind each are left out.

    Raises:
        UserError: a prompt is blank or too long, or the file cannot be written.
    """
    file, table = check_text_table(file), {}
    for prompt in dict.fromkeys(prompts):
        rows = encoder.encode([prompt])[0]
        used = int(rows.any(dim=1).nonzero().max()) + 1
        table[prompt] = rows[:used].contiguous()
    partial = file.with_name(f".{file.name}.partial")
    save_file(table, partial)
    os.replace(partial, file)
    return file

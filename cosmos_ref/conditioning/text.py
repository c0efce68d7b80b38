"""Turn prompts into the rows that cross-attention reads: T5 from a local folder, or words without any download.

Both leave the rows behind the last word zero, as Cosmos does with T5's padding, because the attention has no mask.
"""

import hashlib
import pickle
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from cosmos_ref.config import TextConfig
from cosmos_ref.errors import UserError

LFS_POINTER = b"version https://git-lfs"
"""How the text begins that Git leaves where a large file was not fetched."""


class TextEncoder(Protocol):
    """Encodes prompts as `length` rows of `width` numbers each."""

    length: int
    width: int

    def encode(self, prompts: Sequence[str | None]) -> Float[Tensor, "B M E"]:
        """Encode each prompt; None is the null text, all zeros.

        Raises:
            UserError: a prompt is blank or too long.
        """
        ...

    def to(self, device: torch.device | str) -> "TextEncoder":
        """The encoder, where it should run; what it gives is on the CPU all the same."""
        ...


class WordsEncoder:
    r"""A frozen encoder without weights: a fixed random vector for the word, plus its place in the prompt.

    The words are the runs of letters, digits and underscores (`\w+`) of the lower-cased prompt. Row $m$, from 0, of
    a prompt whose $m$-th word is $w$ is the sum of two float32 vectors,

    $$\frac{g_w}{\sqrt{\mathrm{mean}(g_w^2)}} + [\sin m\omega, \cos m\omega],
      \qquad \omega_i = 100^{-2i/E},\ i = 0 \ldots E/2 - 1,$$

    with $g_w$ the first $E$ numbers of `Generator(Philox(key)).standard_normal(dtype=float32)` in numpy, whose key
    is the first 16 bytes of SHA-256 of the word in UTF-8, read as two little-endian 64-bit numbers. All further
    rows are zero.

    Args:
        length: rows M, the most words a prompt may have.
        width: numbers per row E, even.
    """

    def __init__(self, length: int, width: int):
        if width % 2:
            raise ValueError(f"the width of the text embeddings must be even, got {width}")
        self.length, self.width = length, width

    def encode(self, prompts: Sequence[str | None]) -> Float[Tensor, "B M E"]:
        """Encode each prompt as float32 rows on the CPU; None is the null text, all zeros.

        Raises:
            UserError: a prompt holds no word, or more than `length`.
        """
        rows = np.zeros((len(prompts), self.length, self.width), np.float32)
        for row, prompt in zip(rows, prompts, strict=True):
            words = [] if prompt is None else _words(prompt, self.length)
            if words:
                place = np.arange(len(words))[:, None] * 100.0 ** (-2 * np.arange(self.width // 2) / self.width)
                row[: len(words)] = np.concatenate([np.sin(place), np.cos(place)], axis=1)
                row[: len(words)] += [word_vector(word, self.width) for word in words]
        return torch.from_numpy(rows)

    def to(self, device: torch.device | str) -> "WordsEncoder":
        """Itself: it has no weights to move."""
        return self


class T5Encoder:
    """The encoder half of a T5 model from a local folder; nothing is downloaded.

    The prompt's tokens, closing `</s>` included, are encoded under the attention mask; the last hidden states are
    kept in float32 and the rows behind them are zero. It runs where `model` is: move that to another device.

    Args:
        folder: the layout of google-t5/t5-11b, with safetensors or `pytorch_model.bin`, or the `text_encoder` of a
            diffusers pipeline, whose tokenizer lies beside it in `tokenizer`. Safetensors are preferred; a `.bin` is
            read as tensors only, and refused if there is code in it.
        length: rows M, the most tokens a prompt may have.
        dtype: precision of the weights; None is that of the files.

    Raises:
        UserError: transformers is not installed, or the folder is missing, incomplete, not safe or no T5.
    """

    def __init__(self, folder: str | Path, length: int = 512, dtype: torch.dtype | None = None):
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"T5 folder {folder} does not exist: give a folder with config, tokenizer and weights")
        try:
            from transformers import AutoTokenizer, T5EncoderModel
            from transformers.utils import logging
        except ImportError as error:
            raise UserError("the t5 text encoder needs transformers: pip install 'cosmos-ref[text]'") from error
        tokenizer_folder = _tokenizer_folder(folder)
        _refuse_pointers(folder, tokenizer_folder)
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # of reading, which runs through what the caller shows
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(
                tokenizer_folder, local_files_only=True, padding_side="right"
            )
            self.model, report = T5EncoderModel.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
                folder,
                local_files_only=True,
                weights_only=True,  # a .bin is a pickle: read its tensors, run nothing
                torch_dtype=dtype or "auto",
                output_loading_info=True,
            )
        except Exception as error:  # transformers, tokenizers and safetensors each raise kinds of their own
            if _holds_code(error):
                raise UserError(
                    f"T5 folder {folder} holds weights with more than tensors in them, and is not read, as that could "
                    "run code: give the same weights as safetensors"
                ) from error
            raise UserError(f"T5 folder {folder} cannot be read: {error}") from error
        finally:
            if shown:
                logging.enable_progress_bar()
        if report["missing_keys"]:  # transformers fills them with random numbers
            missing = ", ".join(sorted(report["missing_keys"])[:3])
            raise UserError(f"T5 folder {folder} lacks weights of a T5 encoder: {missing}, ...")
        self.model.eval().requires_grad_(False)
        self.length, self.width = length, int(self.model.config.d_model)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str | None]) -> Float[Tensor, "B M E"]:
        """Encode each prompt as float32 rows on the CPU; None is the null text, all zeros.

        Raises:
            UserError: a prompt is blank or has more than `length` tokens.
        """
        rows = torch.zeros(len(prompts), self.length, self.width)
        given = [n for n, prompt in enumerate(prompts) if prompt is not None]
        if given:
            tokens = [self._tokens(str(prompts[n])) for n in given]
            batch = self.tokenizer.pad(
                {"input_ids": tokens}, padding="max_length", max_length=self.length, return_tensors="pt"
            ).to(self.model.device)
            hidden = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
            rows[given] = hidden.float().masked_fill(batch.attention_mask[..., None] == 0, 0).cpu()
        return rows

    def to(self, device: torch.device | str) -> "T5Encoder":
        """Move the weights."""
        self.model.to(device)
        return self

    def _tokens(self, prompt: str) -> list[int]:
        if not prompt.strip():
            raise _blank(prompt)
        tokens = self.tokenizer(prompt, truncation=False).input_ids
        if len(tokens) > self.length:
            raise _too_long(prompt, len(tokens), "tokens", self.length)
        return tokens


def build_text_encoder(
    text: TextConfig, t5_folder: str | Path | None = None, dtype: torch.dtype | None = None
) -> TextEncoder:
    """Build the encoder that a preset names; `dtype` is the precision of T5's weights, None that of its files.

    Raises:
        UserError: the name is unknown, or T5's folder is missing, not wanted, unusable or of another width.
    """
    if text.encoder == "words":
        if t5_folder is not None:
            raise UserError(f"this model reads its prompts without T5: leave the T5 folder {t5_folder} out")
        return WordsEncoder(text.length, text.width)
    if text.encoder != "t5":
        raise UserError(f"unknown text encoder {text.encoder!r}; accepted: words, t5")
    if t5_folder is None:
        raise UserError("the text encoder 't5' needs its folder: give one with config, tokenizer and weights")
    encoder = T5Encoder(t5_folder, text.length, dtype)
    if encoder.width != text.width:
        raise UserError(f"T5 folder {t5_folder} gives width {encoder.width}; this model takes {text.width}")
    return encoder


def _holds_code(error: BaseException | None) -> bool:
    """Whether a refusal to unpickle stands behind an error; some versions of transformers raise their own on top."""
    while error is not None and not isinstance(error, pickle.UnpicklingError):
        error = error.__cause__ or error.__context__
    return error is not None


@lru_cache(maxsize=4096)
def word_vector(word: str, width: int) -> Float32[np.ndarray, "E"]:
    """Return the unit-RMS Gaussian vector of a word, the same in every process and on every machine."""
    key = np.frombuffer(hashlib.sha256(word.encode()).digest()[:16], "<u8")
    vector = np.random.Generator(np.random.Philox(key=key)).standard_normal(width, dtype=np.float32)
    return vector / np.sqrt(np.mean(vector**2))


def _tokenizer_folder(folder: Path) -> Path:
    """Where the tokenizer's files are: with the weights, or where a diffusers pipeline keeps them."""
    beside = folder.parent / "tokenizer"
    for place in (folder, beside):
        if any((place / name).is_file() for name in ("tokenizer.json", "spiece.model")):
            return place
    raise UserError(f"T5 folder {folder} has no tokenizer: tokenizer.json or spiece.model must be there or in {beside}")


def _refuse_pointers(*folders: Path) -> None:
    for path in (path for folder in folders for path in sorted(folder.iterdir()) if path.is_file()):
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder")


def _words(prompt: str, length: int) -> list[str]:
    words = re.findall(r"\w+", prompt.lower())
    if not words:
        raise _blank(prompt)
    if len(words) > length:
        raise _too_long(prompt, len(words), "words", length)
    return words


def _blank(prompt: str) -> UserError:
    return UserError(f"the prompt {prompt!r} is empty: write what should be seen, or leave the prompt out")


def _too_long(prompt: str, given: int, unit: str, accepted: int) -> UserError:
    return UserError(f"the prompt {prompt[:60]!r}... has {given} {unit}; at most {accepted} are accepted: shorten it")

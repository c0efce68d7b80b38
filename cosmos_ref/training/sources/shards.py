"""Training clips from the shards that `cosmos-ref prepare` writes: latents and text, encoded once.

A shard is a WebDataset tar, and any reader of those can stream it. Training reads its samples in another way, by their
places in the files, which the index knows: then a sample's number alone says which clip it is, on any process and
whatever was read before. So the number of samples so far is all the state that the sampler has; a stream would have the
order of the shards, the place in each, and a shuffling buffer to be saved and restored, on as many processes as before.
"""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor

from cosmos_ref.checkpoint import load_strict
from cosmos_ref.config import Config
from cosmos_ref.equations.buckets import padding_mask
from cosmos_ref.equations.causal import latent_length
from cosmos_ref.errors import UserError
from cosmos_ref.tokenizer.build import build_tokenizer
from cosmos_ref.training.random import philox
from cosmos_ref.training.sources.clips import CLIP_STREAM, Bucket, Clips, Domain, domains_of, draw_bucket, fullest
from cosmos_ref.video_io import IMAGE_FPS

INDEX, TOKENIZER, STATISTICS = "index.json", "tokenizer.safetensors", "statistics.safetensors"
FORMAT = 1
REMEDY = "run `cosmos-ref prepare` again, it mends what is damaged"


def what_latents_depend_on(config: Config) -> dict[str, Any]:
    """What shards and a training must agree on, as JSON values."""
    parts = {"tokenizer": config.tokenizer, "text": config.text}
    fields: dict[str, Any] = {name: dataclasses.asdict(part) for name, part in parts.items()}
    fields["buckets"] = config.data.buckets
    if config.data.buckets == "one":
        fields["size"] = [config.clip.height, config.clip.width]
    return json.loads(json.dumps(fields))


class ShardSource:
    """Prepared clips. Videos give images too: their first latent frame is that of an image.

    A training may have shorter clips than were prepared: the tokenizer is causal, so it takes the first latent frames.

    Args:
        folder: what `cosmos-ref prepare` wrote.
        config: of the training; its seed, its clip and its data filters decide which clip a number stands for.

    Raises:
        UserError: the folder is not whole or not of this configuration, or no clip is left.
    """

    def __init__(self, folder: str | Path, config: Config):
        self.folder, self.config, self.seed = Path(folder), config, config.train.seed
        index = read_index(self.folder)
        prepared, asked = index["settings"], what_latents_depend_on(config)
        other = [f"{name}: {prepared.get(name)}, now {now}" for name, now in asked.items() if prepared.get(name) != now]
        if config.clip.frames > prepared["frames"]:
            other.append(f"frames: {prepared['frames']}, now {config.clip.frames}")
        if other:
            listed = "\n  ".join(other)
            raise UserError(f"{self.folder} was prepared with other settings; prepare another folder:\n  {listed}")
        self.shards = [self.folder / shard["name"] for shard in index["shards"]]
        for path, shard in zip(self.shards, index["shards"], strict=True):
            size = path.stat().st_size if path.is_file() else None
            if size != shard["bytes"]:
                state = "is missing" if size is None else f"has {size} bytes instead of {shard['bytes']}"
                raise UserError(f"{path} {state}: {REMEDY}")
        self.tokenizer = build_tokenizer(config.tokenizer)
        load_strict(self.tokenizer, read_tensors(self.folder / TOKENIZER), "the tokenizer")
        self.tokenizer.eval().requires_grad_(False)
        self.statistics = read_tensors(self.folder / STATISTICS)
        self.latent_frames = latent_length(config.clip.frames, config.tokenizer.temporal_factor)
        self.held = self._sort_into_buckets(index["samples"])
        self.captions: list[str | None] = []  # they are embedded already
        self.identity = f"{len(index['samples'])} prepared clips, {index['identity']}, seed {self.seed}"

    def clips(self, indices: Sequence[int], domain: Domain = "video", bucket: Bucket | None = None) -> Clips:
        """The clips of these numbers: a sample of this bucket at random.

        Raises:
            RuntimeError: a sample is damaged.
        """
        samples = self.held[domain][bucket or fullest(self._counts(domain))]
        draws = [philox(self.seed, index, CLIP_STREAM[domain]).integers(len(samples)) for index in indices]
        drawn = [samples[int(draw)] for draw in draws]
        frames = 1 if domain == "image" else self.latent_frames
        read = [self._read(sample) for sample in drawn]
        return Clips(
            video=None,
            captions=[sample["caption"] for sample in drawn],
            fps=torch.tensor([IMAGE_FPS if domain == "image" else sample["fps"] for sample in drawn]),
            padding_mask=torch.stack([padding_mask(*sample["fitted"], *sample["bucket"]) for sample in drawn]),
            latents=torch.stack([tensors["latents"][:, :frames].float() for tensors in read]),
            text_embeddings=torch.stack([self._text(tensors) for tensors in read]),
        )

    def bucket(self, micro_batch: int, domain: Domain = "video") -> Bucket:
        """The size of a micro-batch; each is as likely as it holds clips."""
        return draw_bucket(self._counts(domain), self.seed, micro_batch, domain)

    def _sort_into_buckets(self, samples: list[dict[str, Any]]) -> dict[Domain, dict[Bucket, list[dict[str, Any]]]]:
        data = self.config.data
        kept = [s for s in samples if s["height"] >= data.min_height and s["sharpness"] >= data.min_sharpness]
        held: dict[Domain, dict[Bucket, list[dict[str, Any]]]] = {domain: {} for domain in domains_of(data)}
        for domain, sizes in held.items():
            for sample in kept:
                if domain in ("image", sample["domain"]):
                    sizes.setdefault(tuple(sample["bucket"]), []).append(sample)
            if not sizes:
                raise UserError(
                    f"{self.folder} holds no {domain} that could be used: of {len(samples)} clips, {len(kept)} have "
                    f"data.min_height {data.min_height} and data.min_sharpness {data.min_sharpness:g}"
                )
        return held

    def _counts(self, domain: Domain) -> dict[Bucket, int]:
        return {bucket: len(samples) for bucket, samples in self.held[domain].items()}

    def _read(self, sample: dict[str, Any]) -> dict[str, Tensor]:
        path = self.shards[sample["shard"]]
        with path.open("rb") as file:
            file.seek(sample["offset"])
            content = file.read(sample["bytes"])
        if zlib.crc32(content) != sample["crc32"]:
            raise RuntimeError(f"sample {sample['key']} of {path} is damaged: {REMEDY}")
        return load(content)

    def _text(self, tensors: dict[str, Tensor]) -> Tensor:
        """All rows: those behind the last word are zero, and were not stored."""
        text = self.config.text
        rows = torch.zeros(text.length, text.width)
        if "text_embeddings" in tensors:
            rows[: len(tensors["text_embeddings"])] = tensors["text_embeddings"].float()
        return rows


def is_prepared(folder: str | Path) -> bool:
    """Whether a folder is one of shards."""
    return (Path(folder) / INDEX).is_file()


def read_index(folder: Path) -> dict[str, Any]:
    """What a folder of shards holds.

    Raises:
        UserError: the index is missing, damaged or of another version.
    """
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} has no {INDEX}, its preparation is not finished: {REMEDY}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): {REMEDY}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise UserError(f"{path} is not of format {FORMAT}: use the version that wrote it, or prepare another folder")
    if index.get("identity") != identity_of(index.get("settings", {}), index.get("samples", [])):
        raise UserError(f"{path} is damaged: {REMEDY}")
    return index


def identity_of(settings: dict[str, Any], samples: list[dict[str, Any]]) -> str:
    """What distinguishes prepared clips from others: how they were made, and every one of them."""
    return hashlib.sha256(json.dumps([settings, samples], sort_keys=True).encode()).hexdigest()[:16]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}): {REMEDY}") from error

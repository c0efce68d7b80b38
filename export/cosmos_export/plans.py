"""An engine on disk: TensorRT's plan, and its card, which says what it was made of, by what, and for which GPU."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cosmos_export.errors import BundleError
from cosmos_export.nvidia import LIBRARIES, Gpu

FOLDER = "engines"
"""Where in a bundle engines are looked for."""


@dataclass(frozen=True)
class Plan:
    """What an engine is. It runs where all of this is as it was when it was built."""

    graph: str
    variant: str
    profile: str
    library: str
    """The module that built it: `tensorrt` or `tensorrt_rtx`."""
    version: str
    capability: str
    """Compute capability of the GPU it runs on, as in 8.9."""
    gpu: str | None
    """Name of the GPU, where the engine runs on no other model."""
    graph_sha256: str
    weights_sha256: str | None
    refittable: bool
    weight_streaming: bool
    optimization_level: int
    inputs: list[dict[str, Any]]
    """`name`, `dtype`, `dims` of every input, and its smallest, usual and largest shape: `min`, `opt`, `max`."""
    outputs: list[dict[str, Any]]
    attentions: int
    """Fused attention operators in the graph."""
    kernels: dict[str, int] | None
    """What the engine is made of: `fused_attentions`, `products`, `products_in_8_bits`; null where it is not told."""

    @property
    def target(self) -> str:
        """Library, version and GPU: what measured kernels belong to."""
        card = "" if self.gpu is None else "-" + re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-")
        return f"{self.library}-{self.version}.sm{self.capability.replace('.', '')}{card}"

    @property
    def stem(self) -> str:
        """Name of its files: whatever makes it another engine is in there."""
        return f"{self.graph}.{self.variant}.{self.profile}.{self.target}.{self.graph_sha256[:12]}"

    @property
    def builder(self) -> str:
        """The library and its version, to be read."""
        return f"{LIBRARIES.get(self.library, self.library)} {self.version}"

    def write(self, plan: bytes | memoryview, folder: Path) -> Path:
        """Write plan and card; the card last, so that an engine with a card is whole."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.stem}.plan"
        card = asdict(self) | {"plan_sha256": hashlib.sha256(plan).hexdigest()}
        card_of(path).unlink(missing_ok=True)
        write_atomically(path, plan)
        write_atomically(card_of(path), (json.dumps(card, indent=1) + "\n").encode())
        return path

    def misfits(self, version: str, gpu: Gpu) -> list[str]:
        """Why this engine does not run on a GPU with a version of its library; nothing if it does."""
        found = []
        if version != self.version:
            found.append(f"it was built by {self.builder}, here is {version}")
        if gpu.capability != self.capability or self.gpu not in (None, gpu.name):
            model = f"{self.gpu}, " if self.gpu else ""
            found.append(f"it was built for {model}compute capability {self.capability}, here is {gpu}")
        return found


def read_plan(path: Path) -> Plan:
    """The card of a plan, after holding the plan against it.

    Raises:
        BundleError: if either is missing or is not as it was written.
    """
    if not path.is_file():
        raise BundleError(f"{path} is missing: build it by `cosmos-ref build-engine`")
    fields = read_card(card_of(path))
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != fields["plan_sha256"]:
            raise BundleError(f"{path} is not the engine that was built: copy it again, or build it again")
    return plan_of(fields)


def read_card(path: Path) -> dict[str, Any]:
    """What a card says.

    Raises:
        BundleError: if it cannot be read, or is not the card of an engine.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        plan_of(fields)
    except FileNotFoundError:
        raise BundleError(f"{path} is missing: an engine is its plan and its card; build it again") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{path} cannot be read ({error!r}): build the engine again") from error
    return fields


def plan_of(fields: Mapping[str, Any]) -> Plan:
    """The engine that a card speaks of."""
    return Plan(**{name: value for name, value in fields.items() if name != "plan_sha256"})


def card_of(plan: Path) -> Path:
    """The card's place."""
    return plan.with_name(plan.name.removesuffix(".plan") + ".json")


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a file beside its place, then put it there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(data)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)

"""diffusers without torchvision: it is only asked to resize the padding mask, which this does in its place.

PyPI's torchvision does not load beside a CPU build of torch.
"""

from enum import Enum
from types import SimpleNamespace

import diffusers.utils
import diffusers.utils.logging
import torch.nn.functional as nnf


class InterpolationMode(Enum):
    NEAREST = "nearest"


def resize(mask, size, interpolation):
    return nnf.interpolate(mask, size=size, mode=interpolation.value)


diffusers.utils.is_torchvision_available = lambda: False  # one that is there may not load

diffusers.utils.logging.set_verbosity_error()  # not to be told at every change of precision

from diffusers.models.transformers import transformer_cosmos  # noqa: E402

transformer_cosmos.transforms = SimpleNamespace(
    InterpolationMode=InterpolationMode, functional=SimpleNamespace(resize=resize)
)

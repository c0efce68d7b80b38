"""How a training is spread over processes, as the loop sees it: here by not being spread at all.

The loop asks a layout to place modules, to average numbers, and which clips are its own. `distributed/` has the layout
of many processes; the command line hands one of the two down.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from cosmos_ref.model.initialization import find_device


class Layout(Protocol):
    """What the loop asks of the processes that it runs on."""

    device: torch.device
    """Where this process computes."""
    rank: int
    """Number of this process; only 0 writes logs and talks."""
    data_rank: int
    """Which of the groups that see different clips this process is in."""
    data_size: int
    """How many such groups there are."""

    def place(self, module: nn.Module) -> None:
        """Spread a module that is still on the meta device, in place; its parameters have the same names as before."""
        ...

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor over all processes."""
        ...

    def agree(self, error: Exception | None) -> None:
        """Wait for all processes; raise in all of them if one brings an error."""
        ...

    def images(self) -> AbstractContextManager[None]:
        """Within it clips are images: every process sees its own, whole ones."""
        ...


class OneProcess:
    """A training in one process."""

    rank, data_rank, data_size = 0, 0, 1

    def __init__(self, device: str | torch.device = "cpu"):
        self.device = find_device(device)

    def place(self, module: nn.Module) -> None:
        """Leave the module as it is."""

    def mean(self, value: Tensor) -> Tensor:
        """The value itself."""
        return value

    def agree(self, error: Exception | None) -> None:
        """Raise the error, if there is one."""
        if error is not None:
            raise error

    @contextmanager
    def images(self) -> Iterator[None]:
        """Nothing changes."""
        yield

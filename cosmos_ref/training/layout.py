"""How a training is spread over processes, as the loop sees it: here by not being spread at all.

The loop asks a layout to place modules, to average numbers, and which clips are its own. `distributed/` has the layout
of many processes; the command line hands one of the two down.
"""

from collections.abc import Callable, Iterator
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
    world: int
    """How many processes there are."""

    @property
    def data_rank(self) -> int:
        """Which of the groups that see different clips this process is in."""
        ...

    @property
    def data_size(self) -> int:
        """How many such groups there are."""
        ...

    def place(self, module: nn.Module) -> None:
        """Spread a module that is still on the meta device, in place; its parameters have the same names as before."""
        ...

    def write(self, tensor: Tensor, value: Tensor) -> None:
        """Put a whole value into a tensor of a placed module; every process brings the same one."""
        ...

    def whole(self, tensor: Tensor) -> Tensor:
        """All of a tensor of a placed module, or of its gradient; every process must ask."""
        ...

    def first(self, tensor: Tensor) -> Tensor:
        """The tensor of the first process, in all of them: what each has measured may differ in its last digits."""
        ...

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor over all processes."""
        ...

    def agree(self, error: Exception | None) -> None:
        """Wait for all processes; raise in all of them if one brings an error."""
        ...

    def images(self) -> AbstractContextManager[None]:
        """Within it clips are images: every process sees its own, whole ones; `data_rank`, `data_size` say so."""
        ...


class OneProcess:
    """A training in one process.

    Args:
        device: where it computes.
        place: what is done to a module before it is filled: nothing, if not told otherwise.
    """

    rank, data_rank, data_size, world = 0, 0, 1, 1

    def __init__(self, device: str | torch.device = "cpu", place: Callable[[nn.Module], None] = lambda module: None):
        self.device = find_device(device)
        self._place = place

    def place(self, module: nn.Module) -> None:
        """Do what is to be done to a module that is still on the meta device."""
        self._place(module)

    @torch.no_grad()
    def write(self, tensor: Tensor, value: Tensor) -> None:
        """Copy."""
        tensor.copy_(value)

    def whole(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def first(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

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

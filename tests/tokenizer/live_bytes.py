"""Counting the bytes that tensors hold while something runs, without a clock and without the operating system."""

import weakref

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Bytes in storages made since it began and still alive: `now`, and the most there ever were, `peak`."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._counted: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        arguments = {
            tensor.untyped_storage()._cdata for tensor in tree_iter((args, kwargs)) if isinstance(tensor, Tensor)
        }
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self._counted and key not in arguments:  # views and results in place are nothing new
                    self._counted.add(key)
                    weakref.finalize(storage, self._freed, key, size)
                    self.now += size
                    self.peak = max(self.peak, self.now)
        return result

    def _freed(self, key, size):
        self._counted.discard(key)
        self.now -= size

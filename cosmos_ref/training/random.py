"""Random numbers of a training: each sample has its own."""

import numpy as np


def philox(seed: int, index: int, stream: int) -> np.random.Generator:
    """Random numbers of one sample; streams of one sample do not overlap."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64), counter=[0, 0, 0, stream]))

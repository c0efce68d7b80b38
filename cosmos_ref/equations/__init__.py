"""Floor 1: every equation of the model is one pure function. Importing this package fills the register."""

from cosmos_ref.equations import (
    attention,
    causal,
    conditioning,
    edm,
    embeddings,
    guidance,
    losses,
    metrics,
    modulation,
    noise,
    patches,
    rope,
    schedules,
    solvers,
    wavelets,
    whitening,
)

__all__ = [
    "attention",
    "causal",
    "conditioning",
    "edm",
    "embeddings",
    "guidance",
    "losses",
    "metrics",
    "modulation",
    "noise",
    "patches",
    "rope",
    "schedules",
    "solvers",
    "wavelets",
    "whitening",
]

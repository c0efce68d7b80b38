"""What the samplers of other implementations do differently, by name."""

from dataclasses import replace

from cosmos_ref.config import Config
from cosmos_ref.errors import UserError

CONVENTIONS: dict[str, dict[str, dict]] = {
    "nvidia": {  # cosmos-predict1, its inference
        "model": dict(qk_norm_eps=1e-6, angles="bf16"),
        "diffusion": dict(sigma_min=0.0002),
        "clip": dict(fps=24.0),
        "sample": dict(
            solver="euler",
            num_steps=35,
            last_sigma="zero",
            initial_noise="total",
            given_noise="fixed",
            state="bf16",
        ),
    },
    "original": {  # the first release, and the sampler that its training looked at: 35 steps and the clean call
        "model": dict(qk_norm_eps=1e-6, angles="bf16"),
        "diffusion": dict(sigma_min=0.002),
        "clip": dict(fps=24.0),
        "sample": dict(
            solver="res_2ab",
            num_steps=36,
            last_sigma="zero",
            initial_noise="sigma_max",
            given_noise="fixed",
            state="fp32",
        ),
    },
    "diffusers": {
        "model": dict(qk_norm_eps=1e-5, angles="fp32"),
        "diffusion": dict(sigma_min=0.002),
        "clip": dict(fps=30.0),
        "sample": dict(
            solver="euler",
            num_steps=36,
            last_sigma="sigma_min",
            initial_noise="sigma_max",
            given_noise="fresh",
            state="fp32",
        ),
    },
}
"""Sections of a configuration, and what each implementation has there."""


def like(config: Config, name: str) -> Config:
    """The configuration, sampled as another implementation does it.

    Raises:
        UserError: if none is called so.
    """
    if name not in CONVENTIONS:
        raise UserError(f"no implementation is called {name!r}; there are: {', '.join(CONVENTIONS)}")
    sections = {section: replace(getattr(config, section), **values) for section, values in CONVENTIONS[name].items()}
    return replace(config, **sections)

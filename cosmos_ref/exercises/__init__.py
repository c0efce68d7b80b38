"""The exercises of the tutorials: `check("01.mixture_denoiser", my_function)` looks for a case where it is wrong."""

from cosmos_ref.exercises.checking import check

__all__ = ["check"]

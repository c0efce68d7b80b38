"""Exercises of tutorial 01: noise, scores and the perfect denoiser."""

from cosmos_ref.exercises.checking import exercise


@exercise(
    "01.score_from_denoiser",
    en="The score points from x towards D. How does its length depend on sigma?",
    pt="O escore aponta de x para D. Como depende de sigma o seu comprimento?",
)
def score_from_denoiser(fn, case):
    """The score by Tweedie's formula."""
    x, D, sigma = case.number("x"), case.number("D"), case.sigma("sigma")
    case.close(fn(x, D, sigma), (D - x) / sigma**2)

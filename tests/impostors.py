"""Impostors: the plausible wrong forms of each equation. Its own laws must reject every one of them."""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass

import hypothesis

from cosmos_ref.traceability import EQUATIONS


@dataclass(frozen=True)
class Impostor:
    """A wrong form of the equation `id`, and where it was met."""

    id: str
    story: str
    function: Callable

    def __str__(self):
        return f"{self.id}-{self.function.__name__}"


IMPOSTORS: list[Impostor] = []


def impostor(id: str, story: str) -> Callable[[Callable], Callable]:
    """Register a wrong form of the equation `id`; `story` says what is wrong and who wrote it so."""

    def register(function: Callable) -> Callable:
        IMPOSTORS.append(Impostor(id, story, function))
        return function

    return register


@contextlib.contextmanager
def in_place_of_its_equation(impostor: Impostor):
    """Let every caller meet the impostor: laws and equations reach equations through their module."""
    original = EQUATIONS[impostor.id].function
    module = sys.modules[original.__module__]
    setattr(module, original.__name__, impostor.function)
    try:
        yield
    finally:
        setattr(module, original.__name__, original)


def rejects(law: Callable) -> bool:
    """Whether the law, run now, fails. Only an assertion counts: a crash proves nothing."""
    quick = hypothesis.settings(
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate], report_multiple_bugs=False
    )
    usual = getattr(law, "_hypothesis_internal_use_settings", None)
    if usual is not None:  # shrinking a counterexample is for people; here one is enough
        law._hypothesis_internal_use_settings = quick
    try:
        law()
    except AssertionError:
        return True
    finally:
        if usual is not None:
            law._hypothesis_internal_use_settings = usual
    return False

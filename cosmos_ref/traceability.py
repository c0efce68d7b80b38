"""The register of equations: one id, one function, one section in the docs, and the tests that hold it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Function = TypeVar("Function", bound=Callable)


@dataclass(frozen=True)
class Equation:
    """An equation of the model: its id (`topic.name`), where it comes from, and the function that is it."""

    id: str
    source: str
    function: Callable


EQUATIONS: dict[str, Equation] = {}


def equation(id: str, source: str) -> Callable[[Function], Function]:
    """Register a function as the equation `id` and return the function itself, unwrapped.

    Args:
        id: lowercase slug `topic.name`, the docs' anchor and the tests' `verifies` marker.
        source: where the formula is printed.

    Raises:
        ValueError: if `id` is taken.
    """

    def register(function: Function) -> Function:
        if id in EQUATIONS:
            raise ValueError(f"equation {id!r} is already {EQUATIONS[id].function.__qualname__}")
        EQUATIONS[id] = Equation(id, source, function)
        return function

    return register

"""How an exercise is declared, and how a student's function is tried until a smallest counter-example is left.

An exercise is a function `law(fn, case)` in `tutorial_NN.py`. It draws values from `case`, calls the student's `fn` and
says what must hold:

    @exercise("01.score_from_denoiser", en="A hint.", pt="Uma dica.")
    def score_from_denoiser(fn, case):
        x, D, sigma = case.number("x"), case.number("D"), case.sigma("sigma")
        case.close(fn(x, D, sigma), (D - x) / sigma**2)
"""

import difflib
import importlib
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cosmos_ref import exercises
from cosmos_ref.errors import UserError

CASES = 50
"""How many cases are tried."""


@dataclass(frozen=True)
class Exercise:
    """What a student's function must do, and a hint in both languages."""

    id: str
    en: str
    pt: str
    law: Callable[[Callable, "Case"], None]


EXERCISES: dict[str, Exercise] = {}


def exercise(id: str, *, en: str, pt: str) -> Callable[[Callable], Callable]:
    """Register `law(fn, case)` as the exercise `id` (`NN.name`, NN the tutorial's number), with its hint.

    Raises:
        ValueError: if `id` is taken.
    """

    def register(law: Callable) -> Callable:
        if id in EXERCISES:
            raise ValueError(f"exercise {id!r} is already there")
        EXERCISES[id] = Exercise(id, en, pt, law)
        return law

    return register


class Wrong(AssertionError):
    """The student's function is wrong on this case; `en` and `pt` are the hint that fits."""

    def __init__(self, claim: str, en: str | None, pt: str | None):
        super().__init__(claim)
        self.en, self.pt = en, pt


class NotWritten(Exception):
    """The student's function is still a hole."""


class Case:
    """One case: draws values by name, remembers them for the counter-example, and says what must hold.

    Everything is drawn so that the smallest counter-example has round numbers: numbers are multiples of 1/8, noise
    levels are 1, 2 or 5 times a power of ten.
    """

    def __init__(self, draw: Callable[[Any], Any]):
        self._draw = draw
        self.shown: dict[str, Any] = {}

    def whole(self, name: str, low: int, high: int) -> int:
        """An integer from `low` to `high`, both included."""
        from hypothesis import strategies as st

        return self.show(name, self._draw(st.integers(low, high)))

    def number(self, name: str, low: float = -4.0, high: float = 4.0) -> Tensor:
        """A float64 scalar, a multiple of 1/8."""
        from hypothesis import strategies as st

        return self.show(name, _float64(self._draw(st.integers(round(8 * low), round(8 * high)))) / 8)

    def sigma(self, name: str, low: float = 2e-3, high: float = 80.0) -> Tensor:
        """A noise level, from `low` to `high`, as often small as large: a float64 scalar."""
        from hypothesis import strategies as st

        levels = [digit * 10.0**power for power in range(-9, 10) for digit in (1, 2, 5)]
        near_one = sorted((level for level in levels if low <= level <= high), key=lambda level: abs(math.log(level)))
        return self.show(name, _float64(self._draw(st.sampled_from(near_one))))

    def numbers(self, name: str, *shape: int, low: float = -4.0, high: float = 4.0) -> Tensor:
        """A float64 tensor of multiples of 1/8."""
        from hypothesis import strategies as st

        size = torch.Size(shape).numel()
        values = self._draw(st.lists(st.integers(round(8 * low), round(8 * high)), min_size=size, max_size=size))
        return self.show(name, _float64(values).reshape(shape) / 8)

    def weights(self, name: str, count: int) -> Tensor:
        """`count` positive numbers that add up to one."""
        from hypothesis import strategies as st

        values = _float64(self._draw(st.lists(st.integers(1, 8), min_size=count, max_size=count)))
        return self.show(name, values / values.sum())

    def show(self, name: str, value: Any) -> Any:
        """Put a value into the counter-example, if there is one, and return it."""
        self.shown[name] = value
        return value

    def close(
        self, yours: Any, wanted: Any, tolerance: float = 1e-6, *, en: str | None = None, pt: str | None = None
    ) -> None:
        """`yours` has the shape of `wanted` and its values, up to `tolerance` times the larger of one and the value.

        Raises:
            Wrong: if it has not; `en` and `pt` are a hint for this law in place of the exercise's.
        """
        wanted = torch.as_tensor(wanted, dtype=torch.float64)
        try:
            value = torch.as_tensor(yours, dtype=torch.float64).detach()
        except (TypeError, ValueError, RuntimeError):
            raise Wrong(f"yours / seu: {yours!r}, no tensor / não é um tensor", en, pt) from None
        if value.shape != wanted.shape:
            claim = f"yours / seu: shape {tuple(value.shape)}, must be / deve ser {tuple(wanted.shape)}"
            raise Wrong(claim, en, pt)
        if not bool(((value - wanted).abs() <= tolerance * wanted.abs().clamp(min=1)).all()):
            raise Wrong(f"yours / seu: {written(value)}, must be / deve ser: {written(wanted)}", en, pt)

    def holds(self, condition: Any, claim: str, *, en: str | None = None, pt: str | None = None) -> None:
        """`condition` is true; `claim` says it in symbols.

        Raises:
            Wrong: if it is not; `en` and `pt` are a hint for this law in place of the exercise's.
        """
        if not bool(condition):
            raise Wrong(f"must hold / deve valer: {claim}", en, pt)


def check(id: str, fn: Callable) -> bool:
    """Try `fn` on random cases of an exercise; print one line if it is right, else the smallest counter-example found.

    A function that is not written yet (it raises NotImplementedError, or returns None or ...) is no error.

    Returns:
        Whether `fn` is right, as far as the cases go.

    Raises:
        UserError: if no exercise has this id, or hypothesis is not installed.
    """
    known = exercise_of(id)
    try:
        import hypothesis
        from hypothesis import strategies as st
    except ImportError as error:
        raise UserError("exercises need hypothesis: pip install 'cosmos-ref[tutorials]'") from error
    last: list[Case] = []
    returned = []

    def yours(*arguments, **options):
        try:
            value = fn(*arguments, **options)
        except NotImplementedError:
            raise NotWritten from None
        if value is None or value is ...:
            if returned:
                raise Wrong(f"yours / seu: {value}", None, None)
            raise NotWritten
        returned.append(True)
        return value

    @hypothesis.settings(
        max_examples=CASES,
        deadline=None,
        derandomize=True,
        database=None,
        report_multiple_bugs=False,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),  # pyright: ignore[reportArgumentType]
    )
    @hypothesis.given(st.data())
    def tried(data):
        last[:] = [Case(data.draw)]
        known.law(yours, last[0])

    try:
        tried()
    except NotWritten:
        print(f"{id}: not written yet / ainda não escrito")
        return False
    except Exception as error:  # whatever the student's function did
        print(f"{id}: ✗")
        print(f"  counter-example / contraexemplo: {values(last[0])}")
        print(f"  {problem(error)}")
        print(f"  hint: {getattr(error, 'en', None) or known.en}")
        print(f"  dica: {getattr(error, 'pt', None) or known.pt}")
        return False
    print(f"{id}: ✓")
    return True


def exercise_of(id: str) -> Exercise:
    """The exercise called `id`.

    Raises:
        UserError: if there is none.
    """
    for module in pkgutil.iter_modules(exercises.__path__, "cosmos_ref.exercises."):
        if "tutorial_" in module.name:
            importlib.import_module(module.name)
    if id not in EXERCISES:
        near = difflib.get_close_matches(id, EXERCISES, n=1, cutoff=0.5)
        known = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(EXERCISES))}"
        raise UserError(f"no exercise is called {id!r}; {known}")
    return EXERCISES[id]


def values(case: Case) -> str:
    """The values of a case in one line."""
    return ", ".join(f"{name} = {written(value)}" for name, value in case.shown.items())


def problem(error: Exception) -> str:
    """What went wrong on a case, in one line."""
    return str(error) if isinstance(error, Wrong) else f"{type(error).__name__}: {' '.join(str(error).split())}"


def written(value: Any) -> str:
    """A value with at most six digits a number, tensors as lists."""
    if isinstance(value, Tensor):
        return written(value.tolist())
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


def _float64(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)

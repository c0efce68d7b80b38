"""What `check` tells a student, and how an exercise is declared."""

import sys

import pytest
import torch

from cosmos_ref.errors import UserError
from cosmos_ref.exercises import check, checking
from cosmos_ref.exercises.checking import EXERCISES, Case, Exercise, Wrong, exercise

ID = "01.score_from_denoiser"


def right(x, D, sigma):
    return (D - x) / sigma**2


def hole(*arguments):
    raise NotImplementedError


@pytest.fixture
def declare(monkeypatch):
    """Declare an exercise for one test only."""

    def declared(law):
        monkeypatch.setitem(EXERCISES, "00.trial", Exercise("00.trial", "a hint", "uma dica", law))
        return "00.trial"

    return declared


@pytest.mark.parametrize("fn", [hole, lambda *arguments: None, lambda *arguments: ...])
def test_a_hole_is_not_an_error(fn, capsys):
    assert check(ID, fn) is False
    assert capsys.readouterr().out == f"{ID}: not written yet / ainda não escrito\n"


def test_a_function_that_sometimes_returns_nothing_is_wrong_and_no_hole(capsys):
    assert check(ID, lambda x, D, sigma: right(x, D, sigma) if x == 0 else None) is False
    printed = capsys.readouterr().out
    assert "x = 0.125" in printed and "yours / seu: None" in printed


def test_the_counter_example_is_the_smallest(capsys):
    check(ID, lambda x, D, sigma: right(x, D, sigma) + (abs(x) >= 2) + (D > 1))
    printed = capsys.readouterr().out
    assert "x = 2, D = 0, sigma = 1\n" in printed or "x = 0, D = 1.125, sigma = 1\n" in printed


def test_the_same_mistake_gets_the_same_counter_example_every_time(capsys):
    printed = set()
    for _ in range(2):
        check(ID, lambda x, D, sigma: (x - D) / sigma)
        printed.add(capsys.readouterr().out)
    assert len(printed) == 1


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (lambda x, D: x, "TypeError"),
        (lambda x, D, sigma: "a", "no tensor / não é um tensor"),
        (lambda x, D, sigma: right(x, D, sigma)[None], "shape (1,), must be / deve ser ()"),
        (lambda x, D, sigma: right(x, D, sigma) * float("nan"), "yours / seu: nan"),
        (lambda x, D, sigma: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_whatever_the_function_does_is_told_in_one_line(fn, said, capsys):
    assert check(ID, fn) is False
    assert said in capsys.readouterr().out.splitlines()[2]


def test_gradients_and_floats_are_as_good_as_tensors():
    assert check(ID, lambda x, D, sigma: right(x, D, sigma).requires_grad_())
    assert check(ID, lambda x, D, sigma: right(x, D, sigma).item())


def test_an_unknown_exercise_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match=r"'01\.score_from_denoise'; did you mean '01\.score_from_denoiser'\?"):
        check("01.score_from_denoise", right)


def test_an_exercise_like_no_other_is_refused_with_all_there_are():
    with pytest.raises(UserError, match=r"there are 01\.denoised_from_noise, 01\.mixture_denoiser"):
        check("zz", right)


def test_without_hypothesis_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(UserError, match=r"pip install 'cosmos-ref\[tutorials\]'"):
        check(ID, right)


def test_an_id_is_taken_once():
    check(ID, right)
    with pytest.raises(ValueError, match="already"):
        exercise(ID, en="", pt="")(right)


def test_a_law_may_have_a_hint_of_its_own(declare, capsys):
    def law(fn, case):
        case.holds(fn(case.whole("n", 0, 9)) >= 0, "n ≥ 0", en="mind the sign", pt="atenção ao sinal")

    assert check(declare(law), lambda n: -1) is False
    printed = capsys.readouterr().out
    assert "contraexemplo: n = 0\n  must hold / deve valer: n ≥ 0\n" in printed
    assert "hint: mind the sign" in printed and "dica: atenção ao sinal" in printed


def test_everything_drawn_is_shown_and_lies_in_its_range(declare):
    cases = []

    def law(fn, case):
        case.whole("n", 2, 5), case.number("a", -1, 1), case.sigma("s", 0.1, 10)
        case.numbers("x", 2, 3, low=0, high=2), case.weights("w", 3)
        cases.append(case)
        fn()

    assert check(declare(law), lambda: 1)
    assert len(cases) == checking.CASES
    for case in cases:
        assert list(case.shown) == ["n", "a", "s", "x", "w"]
        shown = case.shown
        assert 2 <= shown["n"] <= 5 and -1 <= shown["a"] <= 1 and 0.1 <= shown["s"] <= 10
        assert shown["x"].shape == (2, 3) and shown["x"].min() >= 0 and shown["x"].max() <= 2
        assert shown["w"].min() > 0 and torch.isclose(shown["w"].sum(), torch.tensor(1.0, dtype=torch.float64))
    for name in ("n", "a", "s"):
        assert len({float(case.shown[name]) for case in cases}) > 2


def test_close_compares_relative_to_large_values_and_absolutely_to_small_ones():
    case = Case(lambda strategy: None)
    case.close(1e6 + 0.5, 1e6)
    case.close(1e-7, 0.0)
    for yours, wanted in ((1e6 + 2, 1e6), (2e-6, 0.0), (float("nan"), 0.0), (float("inf"), 0.0)):
        with pytest.raises(Wrong):
            case.close(yours, wanted)

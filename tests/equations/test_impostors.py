"""Every impostor is rejected by a law of its own equation, and every law rejects an impostor."""

import importlib
from pathlib import Path

import pytest

from tests.impostors import IMPOSTORS, in_place_of_its_equation, rejects


def collect_laws() -> dict[str, list]:
    laws: dict[str, list] = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path.stem == "test_impostors":
            continue
        for name, value in vars(importlib.import_module(f"tests.equations.{path.stem}")).items():
            for mark in getattr(value, "pytestmark", []) if name.startswith("test_") else []:
                for id in mark.args if mark.name == "verifies" else []:
                    laws.setdefault(id, []).append(value)
    return laws


LAWS = collect_laws()
ALL_LAWS = sorted({law for laws in LAWS.values() for law in laws}, key=lambda law: (law.__module__, law.__name__))


@pytest.mark.parametrize(
    "impostor", [pytest.param(i, marks=pytest.mark.verifies(i.id, by="impostor")) for i in IMPOSTORS], ids=str
)
def test_no_impostor_passes(impostor):
    with in_place_of_its_equation(impostor):
        assert any(rejects(law) for law in LAWS[impostor.id]), impostor.story


@pytest.mark.parametrize("law", ALL_LAWS, ids=lambda law: law.__name__)
def test_no_law_is_idle(law):
    """A law that no impostor breaks is no test."""
    assert any(rejects_impostor(law, impostor) for impostor in IMPOSTORS if law in LAWS[impostor.id])


def rejects_impostor(law, impostor) -> bool:
    with in_place_of_its_equation(impostor):
        return rejects(law)

"""Mutants differ in one place, none is overlooked, and no explanation outlives its mutant."""

import json

import pytest
from cosmic_ray.ast import get_ast
from cosmic_ray.mutating import mutate_code

from tests.mutation import runner
from tests.mutation.__main__ import NOTHING_TO_CHANGE, RESULTS, explanations, failures, scope
from tests.mutation.mutants import PACKAGE, Mutant, functions, mutants
from tests.mutation.operators import OWN

EXAMPLES = [(operator, example) for operator in OWN for example in operator.examples()]


@pytest.mark.parametrize("operator, example", EXAMPLES, ids=lambda value: getattr(value, "__name__", None))
def test_an_operator_makes_the_change_that_it_names(operator, example):
    changed = mutate_code(example.pre_mutation_code, operator(), example.occurrence)
    assert changed == example.post_mutation_code
    assert get_ast(changed).get_code() == changed


@pytest.mark.parametrize("module", scope())
def test_every_function_has_mutants_and_each_changes_that_function_alone(module):
    source = (PACKAGE / module).read_text()
    found = mutants(module)
    assert {m.function for m in found} == {f for f in functions(source) if (module, f) not in NOTHING_TO_CHANGE}
    for mutant in found:
        before, after = source.splitlines(), mutant.source.splitlines()
        same = next(i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b)
        function = functions(source)[mutant.function]
        assert function.lineno <= same + 1 <= function.end_lineno


def test_a_change_that_matters_is_killed_and_none_survives():
    source = (PACKAGE / "equations/edm.py").read_text()
    wrong = Mutant("equations/edm.py", "c_noise", 0, source.replace("0.25 * torch.log", "0.5 * torch.log"), "")
    assert wrong.source != source
    unchanged = Mutant("equations/edm.py", "c_noise", 0, source, "")
    hidden = Mutant("equations/edm.py", "c_skip", 0, wrong.source, "")  # judged by the laws of another equation
    outcomes = dict(runner.run_all([wrong, unchanged, hidden], workers=1))
    assert outcomes == {wrong: "killed", unchanged: "survived", hidden: "survived"}


def test_every_module_in_scope_has_tests():
    for module in scope():
        for mutant in (Mutant(module, name, 0, "", "") for name in functions((PACKAGE / module).read_text())):
            files, _ = runner.tests_of(mutant)
            assert files and all(path.is_file() for path in files), mutant.function


def test_every_explanation_is_of_a_mutant_that_can_still_be_made():
    """Whoever changes a line says anew why its survivors may live."""
    explained = [(e["module"], e["function"], e["change"].strip()) for e in explanations()]
    made = {(m.module, m.function, m.change.strip()) for module in {e[0] for e in explained} for m in mutants(module)}
    assert not set(explained) - made
    assert len(set(explained)) == len(explained)


def test_the_last_run_reached_its_goals_and_every_survivor_is_explained():
    results = json.loads(RESULTS.read_text())["modules"]
    assert set(results) == set(scope())
    assert not failures(results)
    assert all(entry["en"].strip() and entry["pt"].strip() for entry in explanations())

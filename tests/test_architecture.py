import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# config stands between the equations, which take numbers, and everything that has parameters.
FLOORS = {
    0: {"", "traceability", "shapes", "errors"},
    1: {"equations"},
    1.5: {"config"},
    2: {"blocks"},
    3: {"model"},
    4: {"tokenizer", "conditioning", "worlds", "video_io", "checkpoint", "adapter", "page"},
    5: {"pipelines", "training", "evaluation"},
    6: {"distributed", "interop", "exercises"},
    7: {"cli", "commands", "catalogue", "evidence", "doctor", "generate", "demo", "prepare", "recipe"},
}
FLOOR_OF = {part: floor for floor, parts in FLOORS.items() for part in parts}
TOP = max(FLOORS)  # the command line starts the demo: only up here may neighbours know each other
HEAVY = {"diffusers", "transformers", "onnx", "onnxruntime", "tensorrt"}
HEAVY |= {"matplotlib", "av", "rich", "tyro", "webdataset", "peft"}


def part_of(module):
    """`cosmos_ref.blocks.mlp` stands in `blocks`; the package itself in ''."""
    return module.split(".")[1] if "." in module else ""


def module_of(path, root):
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def sources():
    files = sorted((ROOT / "cosmos_ref").rglob("*.py"))
    assert len(files) > 30, "the package was not found"
    return [(module_of(path, ROOT), path.read_text()) for path in files]


def parts_imported(source):
    """Parts of cosmos_ref that this source imports anywhere, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (part_of(name.name) for name in node.names if name.name.split(".")[0] == "cosmos_ref")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which floor they reach"
            if node.module == "cosmos_ref":
                yield from (name.name if name.name in FLOOR_OF else "" for name in node.names)
            elif node.module.split(".")[0] == "cosmos_ref":
                yield part_of(node.module)


def wrong_imports(module, source):
    own = part_of(module)
    return [
        f"{module} (floor {FLOOR_OF[own]}) imports {other} (floor {FLOOR_OF[other]})"
        for other in parts_imported(source)
        if other != own and not (FLOOR_OF[other] < FLOOR_OF[own] or FLOOR_OF[other] == FLOOR_OF[own] in (0, TOP))
    ]


def loaded_after(statement, *path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_every_module_belongs_to_a_floor():
    assert {part_of(module) for module, _ in sources()} <= set(FLOOR_OF)


def test_imports_go_down_only():
    assert [wrong for module, source in sources() for wrong in wrong_imports(module, source)] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cosmos_ref.equations.edm", "from cosmos_ref.config import Config"),
        ("cosmos_ref.config", "import cosmos_ref.blocks.mlp"),
        ("cosmos_ref.blocks.mlp", "def f():\n    from cosmos_ref import model"),
        ("cosmos_ref.pipelines.sample", "from cosmos_ref.training.loop import train"),
        ("cosmos_ref.tokenizer.haar_pca", "from cosmos_ref.worlds import simulate"),
        ("cosmos_ref.training.loop", "from cosmos_ref.cli import main"),
    ],
)
def test_an_import_upwards_or_sideways_is_seen(module, source):
    assert len(wrong_imports(module, source)) == 1


def test_nothing_is_called_utils_or_common_or_core_or_helpers_or_misc():
    names = {part for module, _ in sources() for part in module.split(".")}
    assert not names & {"utils", "util", "common", "core", "helpers", "misc"}


def test_importing_the_package_loads_nothing_heavy():
    assert not loaded_after("import cosmos_ref", str(ROOT)) & HEAVY


def test_importing_the_model_and_its_floors_loads_nothing_heavy():
    statement = (
        "import cosmos_ref.model.initialization, cosmos_ref.tokenizer.haar_pca, cosmos_ref.conditioning.condition"
    )
    assert not loaded_after(statement, str(ROOT)) & HEAVY


def test_the_deployers_runtime_does_not_load_torch():
    loaded = loaded_after("import cosmos_export.runtime", str(ROOT / "export"))
    assert not loaded & {"torch", "cosmos_ref"}

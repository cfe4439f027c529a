"""The house: which folder may import which, and what starting it costs (DESIGN: layers)."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ugc_jax"

# Lowest first; what stands in one line may not import each other either.
LAYERS = (
    ("extras",),
    ("errors",),
    ("remote",),
    ("files", "processes", "progress", "scratch", "settings", "words"),
    ("compilation", "sharding", "watch"),
    ("models",),
    ("media",),
    ("data",),
    ("hf",),
    ("generate",),
    ("judge",),
    ("train",),
    ("evals",),
    ("rl",),
    ("plan",),
    ("doctor", "report"),
    ("web",),
    ("annotate", "label", "serve"),
    ("toy",),
    ("jobs",),
    ("api", "cli"),
)
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
# The package itself: its version, and the public API, imported when it is first asked for.
FACADE = "__init__"


def module_name(file: Path) -> str:
    """ugc_jax/data/__init__.py -> "data", ugc_jax/data/prompt.py -> "data.prompt"."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == FACADE and len(parts) > 1 else parts)


def imports(file: Path) -> set[str]:
    """Modules of the package that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import; name the module in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    inside = {name.removeprefix("ugc_jax.") for name in found if name.startswith("ugc_jax.")}
    return {name for name in (known(one) for one in inside) if name is not None}


def known(name: str) -> str | None:
    """The module that an imported name is, or None for a name within a module."""
    path = PACKAGE.joinpath(*name.split("."))
    return name if path.with_suffix(".py").exists() or path.is_dir() else None


FILES = sorted(PACKAGE.rglob("*.py"))
GRAPH = {module_name(file): imports(file) for file in FILES}


def room(module: str) -> str:
    return module.partition(".")[0]


def test_every_room_has_its_layer():
    assert {room(module) for module in GRAPH} - {FACADE} == set(LAYER)


@pytest.mark.parametrize("name", sorted(set(LAYER)))
def test_a_room_imports_lower_ones_only(name):
    wrong = {
        f"{module} imports {target}"
        for module, targets in GRAPH.items()
        for target in targets
        if room(module) == name and room(target) != name and LAYER[room(target)] >= LAYER[name]
    }
    assert not wrong


def test_no_module_imports_itself_by_way_of_others():
    graph = {module: targets - {module} for module, targets in GRAPH.items()}
    for module, targets in graph.items():  # a package is imported before its modules
        packages = {".".join(module.split(".")[:n]) for n in range(1, module.count(".") + 1)}
        graph[module] = targets - packages
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the cycle


def test_only_jobs_import_the_toy():
    rooms = {
        room(module) for module, targets in GRAPH.items() for one in targets if room(one) == "toy"
    }
    assert rooms <= {"toy", "jobs"}


def test_rewards_and_evaluation_do_not_know_each_other():
    for module, targets in GRAPH.items():
        if room(module) == "rl":
            assert "evals" not in {room(target) for target in targets}, module


@pytest.mark.parametrize("folder", sorted({file.parent for file in FILES} - {PACKAGE}))
def test_every_folder_says_what_lives_there(folder):
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert text is not None
    assert len(text.splitlines()) <= 15


def test_the_readme_names_files_that_are_there():
    root = PACKAGE.parent
    text = (root / "README.md").read_text()
    named = set(re.findall(r"(?:tests|configs|launch|ugc_jax)/[\w/]+\.(?:py|sh|sbatch)", text))
    assert {path for path in named if not (root / path).exists()} == set()


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import ugc_jax", ("jax", "torch", "transformers", "numpy")),
        ("from ugc_jax.cli import run; run(['--help'])", ("jax", "torch", "transformers", "numpy")),
        ("import ugc_jax.data.extract, ugc_jax.data.records", ("jax", "torch", "transformers")),
        ("import ugc_jax.evals.evaluate, ugc_jax.report.page", ("jax", "torch", "transformers")),
        ("import ugc_jax.models.qwen2_5_omni.config, ugc_jax.hf.config", ("jax", "torch")),
    ],
)
def test_nothing_heavy_is_imported(code, heavy):
    code = f"import sys; {code}; print(*[name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == ""

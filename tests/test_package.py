"""The package: what its wheel holds, what `import ugc_jax` offers, the example of its docstring."""

import ast
import email.parser
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from pathlib import Path

import pytest

import ugc_jax

ROOT = Path(__file__).resolve().parents[1]
API = [
    "Caption", "Captioner", "Clip", "ClipSettings", "Comparison", "Evaluation", "Run",
    "SamplingConfig", "UserError", "__version__", "compare", "evaluate", "grpo", "sft",
]  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this clone."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling, which builds the wheel, is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--quiet", f"--wheel-dir={folder}"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, ROOT], check=True)
    return next(folder.iterdir())


def test_the_wheel_holds_the_package_and_the_configs_and_nothing_else(wheel):
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ugc_jax").rglob("*.py")}
    expected |= {f"ugc_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    pages = "cells.html", "differences.html", "report.html", "runs.html", "table.html"
    scripts = "differing.js", "element.js", "evidence.js", "player.js", "report.js", "runs.js"
    styles = "evidence.css", "report.css"
    templates = (*pages, *scripts, *styles)
    expected |= {f"ugc_jax/report/templates/{name}" for name in templates}
    prompts = "sound", "picture", "both", "again"
    expected |= {f"ugc_jax/label/prompts/{name}.txt" for name in prompts}
    pages = "base clip clip_questions clips done fault form home log login people player project"
    pages = [*pages.split(), "agreement", "questions", "work"]
    expected |= {f"ugc_jax/annotate/templates/{name}.html" for name in pages}
    expected.add("ugc_jax/label/templates/select.html")
    static = "annotate.css", "annotate.js", "icon.svg", "theme.js"
    expected |= {f"ugc_jax/annotate/static/{name}" for name in static}
    static = "icon.svg", "index.html", "try.css", "try.js"
    expected |= {f"ugc_jax/serve/static/{name}" for name in static}
    expected |= {"ugc_jax/annotate/guidelines.txt", "ugc_jax/py.typed"}
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {"ugc_jax/cli.py", "ugc_jax/rl/rewards/runner.py", "ugc_jax/configs/tiny.py"} < expected


def test_the_wheel_has_the_version_the_command_and_the_license(wheel):
    archive = zipfile.ZipFile(wheel)
    content = {Path(n).name: archive.read(n).decode() for n in archive.namelist() if "-info" in n}
    metadata = email.parser.HeaderParser().parsestr(content["METADATA"])
    assert (metadata["Name"], metadata["Version"]) == ("ugc_jax", ugc_jax.__version__)
    assert "ugc-jax = ugc_jax.cli:main" in content["entry_points.txt"]
    assert content["LICENSE"] == (ROOT / "LICENSE").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = [word for word in metadata.get_all("Requires-Dist") if "extra ==" not in word]
    assert len(needs) == len(project["dependencies"])


def test_a_config_is_found_by_name_without_a_clone(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    words = [sys.executable, "-m", "ugc_jax.cli", "extract", "--config", "world", "nothere.jsonl"]
    run = subprocess.run(
        [*words, "--output", "records"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
    )
    assert run.stderr.startswith("ugc-jax extract: nothere.jsonl: no such file")  # config was read
    assert run.returncode == 2


def test_importing_the_package_is_quick():
    code = "import time; t = time.perf_counter(); import ugc_jax; print(time.perf_counter() - t)"
    words = [sys.executable, "-c", code]
    runs = [subprocess.run(words, capture_output=True, cwd=ROOT, check=True) for _ in range(3)]
    assert min(float(run.stdout) for run in runs) < 0.1


def test_dir_is_the_public_api():
    assert dir(ugc_jax) == API
    classes = [name for name in API if name[0].isupper()]
    assert [name for name in API if inspect.isclass(getattr(ugc_jax, name))] == classes
    assert all(callable(getattr(ugc_jax, name)) for name in API if name != "__version__")
    from ugc_jax import errors
    from ugc_jax.generate import captioner

    assert ugc_jax.Captioner is captioner.Captioner
    assert ugc_jax.UserError is errors.UserError


def test_importing_it_takes_less_than_a_tenth_of_a_second():
    code = "import time; t = time.perf_counter(); import ugc_jax; print(time.perf_counter() - t)"
    words = [sys.executable, "-c", code]
    seconds = [
        float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        for _ in range(3)  # the machine may be busy
    ]
    assert min(seconds) < 0.1


def test_type_checkers_see_the_public_api():
    """Names that are imported on first use are imported for type checkers, too."""
    tree = ast.parse((ROOT / "ugc_jax/__init__.py").read_text())
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(typed.test) == "TYPE_CHECKING"
    names = [alias.name for node in typed.body for alias in node.names]
    assert sorted([*names, "UserError", "__version__"]) == API
    assert any(isinstance(node, ast.FunctionDef) for node in typed.orelse)


def test_the_example_of_the_docstring_runs(
    tiny_checkpoint, tiny_captioner, clips, tmp_path, monkeypatch, capsys
):
    code = textwrap.dedent("\n".join(re.findall(r"^(?: {4}.*)?$", ugc_jax.__doc__, re.M)))
    folder, clip = re.findall(r'"(.*?)"', code)
    (tmp_path / folder).parent.mkdir(parents=True)
    (tmp_path / folder).symlink_to(tiny_checkpoint)
    (tmp_path / clip).symlink_to(clips / "a.mp4")
    monkeypatch.chdir(tmp_path)
    expected = tiny_captioner.caption([clip], max_new_tokens=64)[0].caption
    exec(compile(code, "docstring of ugc_jax", "exec"), {})
    assert capsys.readouterr().out == f"{expected}\n"
    assert expected


def test_the_quickstart_leaves_the_model_of_the_example():
    script = (ROOT / "launch/quickstart.sh").read_text()
    folder = re.search(r'from_pretrained\("(.*?)"', ugc_jax.__doc__)[1]
    run, _, model = folder.partition("/grpo/")
    assert f'run="$root/{run}"' in script
    assert f"$run/grpo/{model}" in script

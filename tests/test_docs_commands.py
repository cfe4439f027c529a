"""launch/docs_commands.py: it finds every command of the pages; each runs, or has its reason."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "launch"))

import docs_commands  # noqa: E402

PAGE = r"""
Run `ugc-jax inspect --fps 1 clip.mp4`, not `ugc-jax JOB --help`, or `ugc-jax caption`:

```bash
# A remark.
ugc-jax caption clips/ \
    --output out.jsonl    # another
checkpoint=runs/mine
curl http://127.0.0.1/v1 -d '{
  "a": 1}'
```

```json
{"video": "a.mp4"}
```

    import os
    for name in os.listdir():
        print(name)

Then `python -m pytest tests/test_cli.py`.
"""


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.setattr(docs_commands, "ROOT", tmp_path)
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


def test_commands_of_a_page(page):
    found = [(one.line, one.kind, one.text) for one in docs_commands.commands(page)]
    assert found == [
        (2, "shell", "ugc-jax inspect --fps 1 clip.mp4"),
        (6, "shell", "ugc-jax caption clips/ --output out.jsonl"),
        (8, "shell", "checkpoint=runs/mine"),
        (9, "shell", "curl http://127.0.0.1/v1 -d '{\n  \"a\": 1}'"),
        (17, "python", "import os\nfor name in os.listdir():\n    print(name)"),
        (21, "shell", "python -m pytest tests/test_cli.py"),
    ]


@pytest.mark.parametrize("text", ["    no command here\n", "```bash\nmake it\n```\n"])
def test_what_is_no_command_is_refused(page, text):
    page.write_text(text)
    with pytest.raises(ValueError, match=r"neither a command nor Python|no known program"):
        docs_commands.commands(page)


@pytest.fixture(scope="module")
def found() -> list:
    return [one for page in docs_commands.PAGES for one in docs_commands.commands(page)]


def test_a_page_that_is_missing_is_one_line():
    command = [sys.executable, str(ROOT / "launch/docs_commands.py"), "docs/nothing.md", "--list"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "docs/nothing.md: no such page" in done.stderr
    assert "Traceback" not in done.stderr


def test_most_commands_run_and_no_rule_is_left_over(found):
    assert sum(not one.reason for one in found) >= 100
    texts = [one.text for one in found]
    for rules in (docs_commands.NEEDS, docs_commands.MORE, docs_commands.NAMES):
        unused = [rule for rule, _ in rules if not any(re.search(rule, text) for text in texts)]
        assert unused == []


def test_files_that_commands_name_are_there(found):
    named = {word for one in found for word in re.findall(r"(?:launch|tests)/[\w/.]+", one.text)}
    assert len(named) > 40
    assert [name for name in sorted(named) if not (ROOT / name.rstrip(".")).exists()] == []


@pytest.mark.slow
def test_every_command_works(tmp_path):
    """In this environment; `--fresh` tries it in an environment of its own."""
    command = [sys.executable, str(ROOT / "launch/docs_commands.py"), "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:]

"""README and docs/: links lead somewhere, quoted messages are printed by the program, and the site
is built without a warning."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return FENCE.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site name them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    wrong = []
    for link in LINK.findall(prose(page)):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


def test_every_page_is_on_the_site_and_in_the_overview():
    config = tomllib.loads((ROOT / ".zensical.toml").read_text("utf-8"))
    on_site = set(re.findall(r"[\w-]+\.md", str(config["project"]["nav"])))
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert on_site == pages
    overview = set(re.findall(r"\(([\w-]+\.md)\)", (ROOT / "docs/index.md").read_text("utf-8")))
    assert overview == pages - {"index.md"}


def test_the_hardware_table_of_the_readme_is_that_of_its_command():
    command = [sys.executable, str(ROOT / "launch/hardware.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() in (ROOT / "README.md").read_text("utf-8")


def test_the_readme_is_a_page():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 180


def texts() -> str:
    """All constant texts of the package, where a value is inserted with NUL between."""

    def joined(node: ast.AST) -> str:
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, str) else ""
        if isinstance(node, ast.JoinedStr):
            return "".join(joined(part) for part in node.values)
        return "\0"

    found = []
    for file in (ROOT / "ugc_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr | ast.Constant):
                found.append(re.sub(r"%[-.\d]*[dsgfi]", "\0", joined(node)))
    return "\n".join(found)


def test_messages_of_troubleshooting_are_those_of_the_program():
    page = prose(ROOT / "docs/troubleshooting.md")
    messages = [quoted for line in re.findall(r"^\*\*`.*$", page, re.MULTILINE)
                for quoted in re.findall(r"\*\*`([^`]+)`\*\*", line)]  # fmt: skip
    assert len(messages) > 30
    known = texts()
    parts = {m: [p.strip() for p in m.split("...") if len(p.strip()) > 3] for m in messages}
    assert [m for m, some in parts.items() if not some or any(p not in known for p in some)] == []


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("zensical", reason="the extra docs is not installed")
    pytest.importorskip("mkdocstrings_handlers.python", reason="the extra docs is not installed")
    settings = (ROOT / ".zensical.toml").read_text("utf-8")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    sources = settings.replace('paths = ["."]', f'paths = ["{ROOT}"]')
    (tmp_path / "zensical.toml").write_text(sources, "utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    reference = (tmp_path / ".site/api/index.html").read_text("utf-8")
    assert "Captioner.from_pretrained" in reference

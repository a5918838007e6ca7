"""The pages under docs/ speak of what is there."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EQUATIONS = (ROOT / "docs" / "equations.md").read_text()
ROWS = re.findall(r"^\| (.+?) \| `(.+?)` \| `(.+?)` \| (.+) \|$", EQUATIONS, re.MULTILINE)


def test_every_equation_has_a_row():
    named = set()
    for equation, *_ in ROWS:
        for first, last in re.findall(r"\((\d+)\)(?:–\((\d+)\))?", equation):
            named |= set(range(int(first), int(last or first) + 1))
    assert named >= set(range(1, 21))


@pytest.mark.parametrize(("code", "test"), [row[1:3] for row in ROWS])
def test_every_row_names_what_exists(code, test):
    module, names = ROOT / "vae_lab", code.split(".")
    while names and ((module / names[0]).is_dir() or (module / f"{names[0]}.py").exists()):
        module /= names.pop(0)
    found = importlib.import_module(".".join(module.relative_to(ROOT).parts))
    for name in names:
        found = getattr(found, name)
    file, function = test.split("::")
    tree = ast.parse((ROOT / "tests" / f"{file}.py").read_text())
    assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_command_is_one(page):
    from vae_lab import hints

    for command, words in re.findall(r"`(?:python scripts/)?(\w+)\.py((?: [^`]+)?)`", page.read_text()):
        arguments = [w for w in words.split() if "=" in w and "…" not in w]
        if command != "benchmark" and not words.strip().startswith("-"):
            first = [w for w in words.split() if "=" not in w][:1] if command == "oracle" else []
            hints.check(" ".join([command, *first]), arguments)

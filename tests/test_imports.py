"""Who may import whom: dependencies point one way, and heavy packages stay where they belong."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vae_lab

ROOT = Path(vae_lab.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}

PART = {"checks", "interfaces", "distributions", "networks"}

ALLOWED = {
    "checks": set(),
    "garbage": set(),
    "seeds": set(),
    "metrics": set(),
    "interfaces": set(),
    "distributions": set(),
    "densities": set(),
    "levels": set(),
    "networks": {"checks"},
    "schedules": {"checks"},
    "hints": {"checks"},
    "oracles": {"checks"},
    # the parts, of which none knows another
    "posteriors": PART,
    "encoders": PART | {"posteriors"},
    "decoders": PART,
    "likelihoods": PART | {"densities", "levels"},
    "priors": PART,
    # the model, what is maximised, and what trains it
    "vae": {"interfaces", "distributions"},
    "objectives": {"checks", "interfaces", "densities", "distributions", "vae"},
    # the data, which know no part
    "data": {"checks", "interfaces", "seeds"},
    # what a trained model is worth, also with parameters for each datum (6)
    "evaluation": PART | {"data", "decoders", "densities", "encoders", "likelihoods", "objectives", "priors", "vae"},
    "engine": {"checks", "interfaces", "objectives", "vae"},
    "lit": {"interfaces", "distributions", "engine", "evaluation", "metrics", "objectives", "seeds", "vae"},
    # the proof sheet, which knows the whole of the mathematics
    "proofs": PART
    | {"data", "decoders", "encoders", "evaluation", "likelihoods", "objectives", "oracles", "priors", "seeds", "vae"},
    # what surrounds it, and knows no part either
    "diagrams": {"interfaces", "objectives", "vae"},
    "pictures": {"distributions", "interfaces", "vae"},
    "runs": {"checks", "hints", "interfaces", "objectives", "vae", "data"},
    "report": {"checks", "data", "oracles", "runs"},
    "callbacks": {"checks", "evaluation", "interfaces", "pictures", "runs", "vae"},
    # the command line, which imports commands as they are asked for
    "composed": {"runs"},
    "composing": {"composed", "hints"},
    "application": {"composing", "data", "garbage", "hints", "runs"},
    "cli": {"application", "checks", "garbage", "hints"},
    "commands": {
        "callbacks",
        "checks",
        "data",
        "decoders",
        "diagrams",
        "encoders",
        "engine",
        "evaluation",
        "garbage",
        "hints",
        "interfaces",
        "levels",
        "likelihoods",
        "lit",
        "objectives",
        "oracles",
        "priors",
        "proofs",
        "report",
        "runs",
        "schedules",
        "seeds",
        "vae",
    },
    # what runs many of them
    "launch": {"application", "callbacks", "checks", "cli", "commands", "data", "engine", "garbage", "hints", "runs"},
    "vae_lab": {"report", "runs"},  # the package itself
}
"""What each module or folder may import of vae_lab, besides itself: always something above it."""

KNOWN_BY = {
    "hydra": {"application", "composed", "composing", "commands", "runs", "launch"},
    "omegaconf": {"application", "composed", "composing", "commands", "launch"},
    "wandb": {"application", "commands", "callbacks"},
    "wandb_workspaces": {"commands"},
    "pytorch_lightning": {"lit", "data", "callbacks", "commands"},
    "torchmetrics": {"metrics", "evaluation"},
    "matplotlib": {"diagrams", "pictures", "callbacks"},
    "rich": {"callbacks", "commands", "launch"},
    "numpy": {"data"},
    "sklearn": {"data"},
    "scipy": {"report"},
    "pandas": {"report"},
    "plotly": {"report"},
    "jinja2": {"report"},
    "PIL": {"report"},
    "pooch": {"data"},
    "yaml": {"commands", "composed", "composing", "hints", "runs", "launch"},
    "zuko": {"posteriors"},
    "submitit": {"launch"},
    "ray": {"launch"},
    "optuna": {"launch", "callbacks"},
    "greenlet": {"engine"},
}
"""The modules and folders that may import each package; others are free."""

MATHEMATICS = ["encoders", "decoders", "likelihoods", "priors", "vae", "objectives", "oracles", "evaluation"]


def imports(path):
    """Every module that a file imports, wherever in it: `from a import b` as a.b where that is a module, else a."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def top(module):
    """A module of vae_lab, or the folder that it is in."""
    return module.removeprefix("vae_lab.").split(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    name = top(module)
    assert name in ALLOWED, f"say in this file what vae_lab.{name} may import"
    ours = {top(other) for other in imports(MODULES[module]) if other.split(".")[0] == "vae_lab"}
    assert ours - {name} <= ALLOWED[name]


def test_the_rules_point_one_way():
    names = list(ALLOWED)
    for i, name in enumerate(names):
        assert ALLOWED[name] <= set(names[:i])


@pytest.mark.parametrize("module", MODULES)
def test_packages_stay_where_they_belong(module):
    for package in {name.split(".")[0] for name in imports(MODULES[module])} & KNOWN_BY.keys():
        assert top(module) in KNOWN_BY[package], f"{module} may not import {package}"


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_mathematics_needs_torch_alone():
    absent = [
        "pytorch_lightning",
        "hydra",
        "omegaconf",
        "wandb",
        "torchmetrics",
        "matplotlib",
        "sklearn",
        "yaml",
        "rich",
        "zuko",
    ]
    names = ", ".join(f"vae_lab.{name}" for name in MATHEMATICS)
    python(f"import sys; sys.modules.update(dict.fromkeys({absent})); import {names}")


def test_the_command_line_answers_without_torch():
    python(
        "import sys, vae_lab, vae_lab.cli, vae_lab.hints; vae_lab.hints.keys('train')\n"
        "loaded = {'torch', 'pytorch_lightning', 'wandb', 'numpy'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )


def test_the_hints_need_no_hydra():
    python("import sys, vae_lab.hints; assert not {'hydra', 'omegaconf', 'torch'} & set(sys.modules)")

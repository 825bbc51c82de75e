"""The directions of DESIGN's imports, held by reading the imports themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "numpy", "PIL", "transformers", "safetensors", "tokenizers", "rich", "onnxruntime", "onnx"}

# package -> what it may import of lorac; "" stands for modules directly in lorac/
ALLOWED = {
    "errors": set(),
    "rng": set(),
    "digest": set(),
    "area": set(),
    "captions": {"rng"},
    "wildcards": {"captions"},
    "words": set(),
    "listing": {"errors"},
    "recipe": {"errors", "rng", "captions", "listing", "sd"},
    "graph": {"digest", "errors", "recipe"},
    "store": {"digest", "errors"},
    "engine": {"digest", "errors", "graph", "report", "store"},
    "sd": {"errors", "rng", "kernels"},
    "kernels": set(),
    "train": {"errors", "rng", "captions", "recipe", "sd", "kernels"},
    "migrate": {"errors", "captions", "listing", "recipe", "sd", "words"},
    "report": {"errors", "digest", "evaluate"},
    "studio": {"digest", "engine", "errors", "kinds", "rng", "sd", "train"},
    "tagger": {"area", "captions", "errors", "listing"},
    "mini": {"errors", "rng", "sd", "tagger"},
    "evaluate": {"captions", "rng", "tagger", "words"},
    "check": {"captions", "dataset", "errors", "graph", "kinds", "listing", "plan", "recipe", "tagger", "words"},
}
# What may import the heavy packages at the top of a module: only what runs inside a kind.
HEAVY_ALLOWED = {"area", "evaluate", "studio", "sd", "train", "mini", "kernels", "tagger"}
MEMORY = ("__init__", "budget", "choose", "meter", "operations", "predict", "run", "shapes", "step", "work")
LIGHT_ANYWAY = {
    "lorac/sd/safetensors.py",
    "lorac/sd/names.py",
    "lorac/train/schedule.py",
    "lorac/train/slices.py",
    "lorac/train/lr.py",
    "lorac/train/switches.py",
    "lorac/train/fused/choice.py",
    *(f"lorac/train/memory/{name}.py" for name in MEMORY),
    "lorac/tagger/protobuf.py",
    "lorac/tagger/vocabulary.py",
    "lorac/evaluate/figures.py",
    "lorac/evaluate/trade_off.py",
}
"""Modules of those packages that null builds import."""


def modules() -> Iterator[tuple[Path, str, ast.Module]]:
    for folder in ("lorac", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT)
            package = "kernels" if folder == "kernels" else relative.parts[1].removesuffix(".py")
            yield relative, package, ast.parse(path.read_text("utf-8"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of what is imported, `TYPE_CHECKING` blocks left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imported(node)


def test_imports_point_one_way() -> None:
    wrong = []
    for path, package, tree in modules():
        if package not in ALLOWED:
            continue  # kinds, the verbs and cli stand on top of everything
        for name in imported(tree):
            parts = name.split(".")
            if parts[0] == "lorac" and len(parts) > 1 and parts[1] not in ALLOWED[package] | {package}:
                wrong.append(f"{path} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_heavy_packages_are_imported_late() -> None:
    wrong = []
    for path, package, tree in modules():
        if package in HEAVY_ALLOWED and path.as_posix() not in LIGHT_ANYWAY:
            continue
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {name.split(".")[0] for node in top for name in imported(ast.Module([node], []))}
        wrong += [f"{path} imports {name} at its top" for name in names & HEAVY]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", ["lorac.cli", "lorac.kinds.registry", "lorac.graph.lower", "lorac.recipe.load"])
def test_what_a_null_build_imports_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_only_the_store_renames_and_flushes() -> None:
    wrong = []
    for path, package, tree in modules():
        if package in ("store", "mini"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.fsync", "os.rename", "os.replace"):
                wrong.append(f"{path}:{node.lineno}")
    assert not wrong, "\n".join(wrong)


def test_every_package_is_installed() -> None:
    """An editable installation hides one that a wheel would lack."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("lorac/**/__init__.py")}
    assert sorted(settings["packages"]) == sorted({*found, "lorac.kernels"})

"""A kind whose code changes must get a new VERSION, or a written reason why its bytes stay the same.

`tests/kind_versions.json` records, for each kind, its VERSION and the digest of the code that makes its bytes.
Comments, docstrings and formatting do not count. After a change that can alter the output: raise VERSION in the
kind's module. After one that cannot: write why under "waiver". Then run `python -m tests.test_kind_versions` to record
the new digest.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from lorac.kinds.registry import KINDS, SCANNERS

ROOT = Path(__file__).parent.parent
RECORD = Path(__file__).with_name("kind_versions.json")

WITHOUT_BYTES = ("errors", "digest", "engine", "graph", "store", "listing", "recipe", "kinds.registry")
"""What kinds import that cannot change what they make: the engine, messages, and settings, which are in the keys."""
WITH_BYTES = ("recipe.arithmetic", "recipe.buckets", "recipe.tagger", "recipe.optimisers")
"""But these modules of `recipe` compute."""
ALSO = {"source": ["listing"]}


def sources(kind: str) -> list[Path]:
    """The files that a kind's code is in: its module, and whatever that imports of lorac, at any depth."""
    found: dict[str, Path] = {}
    wanted = [f"kinds.{kind}", *ALSO.get(kind, [])]
    while wanted:
        name = wanted.pop()
        path = _file(name)
        if path is not None and name not in found:
            found[name] = path
            wanted += [other for other in _imports(path) if _makes_bytes(other)]
    return [found[name] for name in sorted(found)]


def _file(name: str) -> Path | None:
    package, _, rest = name.partition(".")
    base = ROOT / "kernels" / rest if package == "kernels" else ROOT / "lorac" / name.replace(".", "/")
    path = base.with_suffix(".py")
    return path if path.is_file() else None


def _makes_bytes(name: str) -> bool:
    inside = [start for start in (*WITHOUT_BYTES, *WITH_BYTES) if name == start or name.startswith(f"{start}.")]
    return not inside or max(inside, key=len) in WITH_BYTES


@cache
def _imports(path: Path) -> list[str]:
    return list(_imported(ast.parse(path.read_text("utf-8"))))


def _imported(tree: ast.AST) -> Iterator[str]:
    """The modules of lorac that a file imports, inside functions too, but not for annotations only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "lorac":
            module = (node.module or "").removeprefix("lorac").removeprefix(".")
            yield from (f"{module}.{alias.name}".removeprefix(".") for alias in node.names)
            yield module
        else:
            yield from _imported(node)


def code_digest(kind: str) -> str:
    """The digest of a kind's code without comments, docstrings and formatting."""
    hasher = hashlib.sha256()
    for file in sources(kind):
        hasher.update(_code(file))
    return hasher.hexdigest()[:16]


@cache
def _code(file: Path) -> bytes:
    tree = ast.parse(file.read_text("utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]  # type: ignore[attr-defined]
    return ast.dump(tree).encode()


def current() -> dict[str, dict[str, object]]:
    return {
        name: {"version": module.VERSION, "code": code_digest(name)} for name, module in {**KINDS, **SCANNERS}.items()
    }


def test_every_kind_is_recorded_and_no_code_changed_in_silence() -> None:
    recorded = json.loads(RECORD.read_text("utf-8"))
    assert recorded.keys() == current().keys()
    for name, now in current().items():
        then = recorded[name]
        if now["code"] == then["code"]:
            assert now["version"] == then["version"], f"{name}: VERSION changed; {__doc__}"
        else:
            raise AssertionError(f"the code of the kind {name} changed; {__doc__}")


def test_a_kind_s_code_is_all_that_it_imports() -> None:
    def names(kind: str) -> set[str]:
        return {path.relative_to(ROOT).as_posix() for path in sources(kind)}

    assert names("image") == {"lorac/kinds/image.py", "lorac/area.py", "lorac/recipe/buckets.py"}
    assert names("latent") >= {
        "lorac/sd/vae.py",
        "lorac/sd/blocks.py",
        "lorac/kinds/weights.py",
        "lorac/kinds/image.py",
    }
    assert names("train") >= {
        "lorac/train/fused/transformer.py",
        "lorac/sd/clip.py",
        "lorac/rng.py",
        "kernels/geglu.py",
    }
    assert not any("store" in name or "engine" in name for kind in KINDS for name in names(kind))


if __name__ == "__main__":
    waivers = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else {}
    record = {
        name: {**now, **{k: v for k, v in waivers.get(name, {}).items() if k == "waiver"}}
        for name, now in current().items()
    }
    RECORD.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")

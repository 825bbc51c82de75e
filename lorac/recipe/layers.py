"""Reading recipe files and laying them over each other: `extends`, then `--base`, then `--set`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import tomli

from lorac.errors import InputError, Problem
from lorac.listing import shown_path
from lorac.recipe.diagnostics import missing_path_remedy
from lorac.recipe.places import Place, Tree
from lorac.recipe.positions import KeyPath, parse_dotted, positions
from lorac.recipe.schema import EXCLUSIVE

# A recipe is written by hand; anything larger is another file, and tomli would need seconds and gigabytes for it.
MAX_BYTES = 1 << 20

KOHYA = {"pretrained_model_name_or_path", "train_data_dir", "dataset_config", "datasets", "image_dir"}
"""Keys of kohya's --config_file and --dataset_config, at the top or in a section, that no recipe has."""


def read_chain(file: Path, where: str = "") -> Tree:
    """The recipe `file`, to which `where` refers, over everything it extends; or a collection, see `is_collection`.

    Raises InputError for the first file that cannot be read, and for a collection where only a recipe may stand.
    """
    chain: dict[Path, str] = {}
    trees: list[Tree] = []
    while True:
        file = file.absolute()
        if file.resolve() in chain:
            names = [*chain.values()][[*chain].index(file.resolve()) :]
            loop = " -> ".join([*names, shown_path(file)])
            raise InputError([Problem(where, f"extends goes round in a circle: {loop}", "take one of them out")])
        chain[file.resolve()] = shown_path(file)
        _refuse_kohyas(file)
        tree = read_file(file, where)
        _refuse_kohyas(file, tree.data)
        if is_collection(tree):
            if where:
                cause = f'"{shown_path(file)}" is a collection of recipes and no recipe'
                raise InputError([Problem(where, cause, "name a recipe")])
            return tree
        _refuse_misspelt_list(tree)
        trees.append(tree)
        parent = tree.data.pop("extends", None)
        if parent is None:
            break
        where = str(tree.place(("extends",)))
        if not isinstance(parent, str) or not parent or "\0" in parent:
            raise InputError([Problem(where, "extends is not a path", 'give one recipe: extends = "other.toml"')])
        file = file.parent / parent
    merged = trees.pop()
    while trees:
        # Two recipes of one name would overwrite each other's files, so a name is nobody's heritage.
        merged.remove(("output", "name"))
        merged.overlay(trees.pop())
    return merged


def is_collection(tree: Tree) -> bool:
    """Whether a file lists recipes and is none itself."""
    return "recipes" in tree.data


def _refuse_misspelt_list(tree: Tree) -> None:
    """Say what a collection's `recipe = ["a.toml"]` should be: read as a recipe, all that it lacks would be told."""
    for name, value in tree.data.items():
        is_list = isinstance(value, list) or (isinstance(value, str) and value.endswith(".toml"))
        if is_list and get_close_matches(name.casefold(), ["recipes"], cutoff=0.8):
            raise InputError.of(tree.place((name,)), f'unknown key "{name}"', 'did you mean "recipes"?')


def _refuse_kohyas(file: Path, data: Mapping[str, object] | None = None) -> None:
    """Say what to do with a file of settings that kohya or the popup wrote, or with a LoRA, given as a recipe."""
    tables = (data, *data.values()) if data else ()
    keys = {key for table in tables if isinstance(table, Mapping) for key in table}
    if KOHYA & keys or (file.is_file() and file.suffix.lower() in (".json", ".safetensors")):
        label = shown_path(file)
        remedy = f"`lorac import {label} -o recipe.toml` makes a recipe of kohya's settings"
        raise InputError([Problem(label, "this is no recipe", remedy)])


def read_file(file: Path, where: str = "") -> Tree:
    """One recipe file with the place of every key; `where` is what refers to it."""
    label = shown_path(file)
    if file.is_dir():
        cause = f'"{label}" is a folder and no recipe'
        raise InputError([Problem(where, cause, "`lorac init` makes a recipe for a folder of pictures")])
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        remedy = missing_path_remedy(file, where.rpartition(":")[0])
        raise InputError([Problem(where, f'there is no recipe "{label}"', remedy)]) from None
    except OSError as error:
        raise InputError([Problem(where, f'the recipe "{label}" cannot be read: {error.strerror}')]) from None
    if len(data) > MAX_BYTES:
        raise InputError([Problem(label, f"{len(data)} bytes are too many for a recipe", "is it the right file?")])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError([Problem(f"{label}:{line}", "this line is not UTF-8", "save the recipe as UTF-8")]) from None
    try:
        values = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        remedy = _toml_remedy(text, error)
        raise InputError([Problem(f"{label}:{error.lineno}", f"not TOML: {error.msg}", remedy)]) from None
    except RecursionError:
        raise InputError([Problem(label, "tables or lists are nested too deeply")]) from None
    root = Place(label, None, file.parent)
    return Tree(root, values, {path: Place(label, line, file.parent) for path, line in positions(text).items()})


def _toml_remedy(text: str, error: tomli.TOMLDecodeError) -> str:
    line = text.splitlines()[error.lineno - 1] if error.lineno <= len(text.splitlines()) else ""
    key, equals, value = line.partition("=")
    if "\\" in value and '"' in value:
        return "write paths with / or in 'single quotes'"
    if "Cannot overwrite" in error.msg or "Cannot declare" in error.msg:
        return "it is there already; take one out"
    if value.strip() in ("yes", "no", "on", "off", "True", "False"):
        return "write true or false"
    if "Illegal character" in error.msg and value.count('"') % 2:
        return "a text in quotes has no end; close it"
    if equals and value.strip()[:1].isalpha() and "Invalid value" in error.msg:
        return f'put text in quotes: {key.strip()} = "{value.strip()}"'
    return f"at column {error.colno}"


def apply_options(tree: Tree, sets: Sequence[str], base: str | None) -> list[Problem]:
    """Assign `--base` and each `--set key=value`. Paths in them are relative to the working directory."""
    problems = []
    given: dict[KeyPath, str] = {}
    if base is not None:
        tree.assign(("train", "base"), base, Place("--base", None, Path.cwd()))
    for option in sets:
        key, equals, text = option.partition("=")
        place = Place(f"--set {option}", None, Path.cwd())
        try:
            path = parse_dotted(key.strip())
        except ValueError:
            path = ()
        if not equals or not path:
            problems.append(Problem(str(place), "this is no assignment", "write it as --set train.seed=7"))
            continue
        other = given.get(EXCLUSIVE.get(path, ()))
        if other is not None:
            problems.append(Problem(str(place), f"--set {other} is given too", "take one of them out"))
        given[path] = option
        finding = tree.assign(path, toml_value(text.strip()), place)
        if finding is not None:
            problems.append(Problem(str(place), finding.cause, finding.remedy))
    return problems


def toml_value(text: str) -> object:
    """`text` as a TOML value, or as a string where it is none: `7`, `[1, 2]`, `true`, `cosine`."""
    try:
        values = tomli.loads(f"value = {text}")
    except tomli.TOMLDecodeError:
        return text
    return values["value"] if len(values) == 1 else text

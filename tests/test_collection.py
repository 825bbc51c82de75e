"""Collections: a file that stands for several recipes, for every verb, and the page that compares them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lorac.graph.lower import lower
from lorac.graph.nodes import Graph, Node
from lorac.recipe.load import load_all
from lorac.report.differences import flattened
from tests.running import contents, lorac, refused
from tests.tiny import make_project

SMALL = ("--set", "train.steps=2", "--set", "sample.prompts=[]", "--set", "regularisation=[]")
"""A build of what these tests are about."""


@pytest.fixture
def project(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`all.toml`: a recipe and its child in a folder, which differs in one setting of training."""
    monkeypatch.chdir(make_project(tmp_path, tiny_base))
    Path("more").mkdir()
    Path("more/child.toml").write_text('extends = "../recipe.toml"\nnetwork.alpha = 8\n', encoding="utf-8")
    write('title = "Two of them"', "recipe.toml", "more/child.toml")
    return tmp_path


def write(head: str, *recipes: str) -> None:
    Path("all.toml").write_text(f"recipes = {json.dumps(recipes)}\n{head}\n", encoding="utf-8")


def output(*arguments: object) -> str:
    done = lorac(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def compared(*files: str, sets: tuple[str, ...] = ()) -> tuple[Graph, Node]:
    """(the graph of the files, its comparison)."""
    loaded = load_all([Path(file) for file in files], sets)
    graph = lower(loaded.recipes, loaded.collections)
    (node,) = (node for node in graph.nodes if node.kind == "compare")
    return graph, node


def about(node: Node) -> list[dict[str, Any]]:
    """What a comparison says of its recipes."""
    recipes: Any = node.params["recipes"]
    return list(recipes)


def test_a_collection_is_its_recipes_and_a_comparison(project: Path) -> None:
    output("build", "all.toml", *SMALL)
    together = contents(project / "build")
    assert {name.split("/")[0] for name in together} == {"recipe", "child", "all"}
    written = {"all/report.html", "all/build.json", "all/build.html"}
    assert {name for name in together if name.startswith("all/")} == written
    alone = output("build", "recipe.toml", "more/child.toml", "--json", *SMALL)
    assert json.loads(alone.splitlines()[-1])["ran"] == 0
    files = {name: digest for name, (digest, _) in together.items() if "/build." not in name}
    assert {n: d for n, (d, _) in contents(project / "build").items() if "/build." not in n} == files
    facts = json.loads(Path("build/all/build.json").read_text(encoding="utf-8"))
    assert facts["recipe"] == "all" and [*facts["kinds"]] == ["compare"] and [*facts["outputs"]] == ["report.html"]


def test_a_comparison_reads_every_recipe_in_order_and_has_no_paths(project: Path) -> None:
    graph, node = compared("all.toml")
    trained = [next(n for n in graph.of_recipe(name) if n.kind == "train") for name in ("recipe", "child")]
    assert [node.inputs[f"losses.{i}"].node for i in range(2)] == trained
    assert all(source.optional for source in node.inputs.values())
    assert node.params["title"] == "Two of them"
    first, second = about(node)
    assert (first["name"], second["name"]) == ("recipe", "child")
    assert second["settings"]["network"]["alpha"] == 8.0
    assert str(project) not in str(node.params)


def test_options_hold_for_all_recipes_and_a_matrix_is_taken_apart(project: Path) -> None:
    Path("more/child.toml").write_text('extends = "../recipe.toml"\nmatrix.network.alpha = [1, 2]\n', encoding="utf-8")
    _, node = compared("all.toml", sets=("train.seed=9",))
    recipes = about(node)
    assert [recipe["name"] for recipe in recipes] == ["recipe", "child-alpha1", "child-alpha2"]
    assert [recipe["settings"]["train"]["seed"] for recipe in recipes] == [9, 9, 9]
    assert len([port for port in node.inputs if port.startswith("losses.")]) == 3


def test_what_one_recipe_cannot_be_built_for_the_comparison_goes_without(project: Path) -> None:
    Path("broken").mkdir()
    Path("broken/bad.png").write_bytes(b"no picture")
    Path("more/broken.toml").write_text(
        'extends = "../recipe.toml"\n[[source]]\npath = "../broken"\ntrigger = ["x"]\n', encoding="utf-8"
    )
    write('title = "Two of them"', "recipe.toml", "more/broken.toml", "more/child.toml")
    (message,) = refused("build", "-k", "all.toml", *SMALL)
    assert message.startswith("broken/bad.png: ")
    done = contents(project / "build")
    assert {name.split("/")[0] for name in done} == {"recipe", "child", "all"}
    assert "all/report.html" in done and "child/child.safetensors" in done


def test_a_training_that_diverges_costs_the_others_nothing(project: Path) -> None:
    Path("more/child.toml").write_text('extends = "../recipe.toml"\ntrain.learning_rate = 1e30\n', encoding="utf-8")
    done = lorac("build", "-k", "all.toml", *SMALL)
    assert done.exit_code == 1, done.output
    assert Path("build/recipe/recipe.safetensors").exists() and Path("build/all/report.html").exists()
    assert not Path("build/child").exists()


def test_every_verb_takes_a_collection(project: Path) -> None:
    plan = output("plan", "all.toml")
    assert re.findall(r"^\w+$", plan, re.MULTILINE) == ["recipe", "child", "all"]
    (steps,) = {int(found) for found in re.findall(r"run +(\d+) steps", plan)}
    assert re.search(rf"^  recipes +2, {2 * steps} steps in all$", plan, re.MULTILINE)
    used, shared = compared("all.toml")[0], re.search(r"shared +(\d+) of (\d+) nodes", plan)
    assert shared and int(shared[2]) - int(shared[1]) == len(used.nodes) - 1, "the rest and the comparison are all"
    assert "may run         compare" in plan
    listed = output("captions", "all.toml")
    assert [line.split(":")[0] for line in listed.splitlines() if "tokens (" in line] == ["recipe", "child"]
    assert lorac("check", "all.toml").exit_code in (0, 1)
    assert "all:compare" in output("graph", "all.toml", "--format", "json")
    assert "compare" in output("build", "-n", "all.toml")


def test_why_explains_a_node_of_all_recipes(project: Path) -> None:
    output("build", "all.toml", *SMALL)
    caption = next(Path("pictures").glob("*.txt"))
    caption.write_text("another caption", encoding="utf-8")
    lines = output("why", "all.toml:caption", *SMALL).splitlines()
    assert [line.split(":")[0] for line in lines if not line.startswith(" ")] == ["recipe", "child"]
    assert sum("caption[pictures]" in line for line in lines) == 2
    assert output("why", "all.toml:compare", *SMALL).startswith("all: ")
    (message,) = refused("why", "all.toml:captoin")
    assert 'there is no node "captoin"' in message


@pytest.mark.parametrize(
    ("table", "place", "value"),
    [
        ('[[source]]\npath = "../pictures"\ntrigger = ["another"]', "sets", "trigger"),
        ('[[source]]\npath = "../pictures"\nalpha = "black"', "sets", "alpha"),
        ('[[regularisation]]\npath = "../class"\ncaption = "1boy"', "sets", "caption"),
        ('[[regularisation]]\ngenerate = { prompt = "1boy", count = 2 }', "sets", "generate"),
        ("evaluate.threshold = 0.6", "settings", "threshold"),
    ],
)
def test_a_comparison_knows_whatever_recipes_differ_in(project: Path, table: str, place: str, value: str) -> None:
    both = "evaluate.count = 2\nevaluate.tagger = 'builtin:mini'\nsample.prompts = ['a']\n"
    for name, more in (("same", ""), ("other", table)):
        Path(f"more/{name}.toml").write_text(f'extends = "../recipe.toml"\n{both}{more}\n', encoding="utf-8")
    write('title = "t"', "more/same.toml", "more/other.toml")
    first, second = (
        dict(flattened(one["settings"], one["folders"], one["sets"])) for one in about(compared("all.toml")[1])
    )
    assert first != second
    assert {key for key in first if first[key] != second[key]} <= (
        {"[[source]]", "[[regularisation]]"} if place == "sets" else {f"evaluate.{value}"}
    )
    assert value in str(second)

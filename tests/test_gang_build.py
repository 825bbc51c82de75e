"""Whole builds of several recipes, trained together and one after the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lorac.sd.safetensors import tensors_of
from tests.running import contents, lorac
from tests.tiny import make_project

MATRIX = 'extends = "../recipe.toml"\nmatrix.network.dim = [1, 4]\nmatrix.train.learning_rate = [1e-3, 3e-4]\n'
THREE = 'extends = "../recipe.toml"\nmatrix.network.dim = [1, 4, 3]\n'
SMALL = ("--set", "sample.prompts=[]", "--set", "regularisation=[]", "--set", "source[0].repeats=1")


@pytest.fixture
def project(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(make_project(tmp_path, tiny_base))
    Path("more").mkdir()
    Path("more/child.toml").write_text(MATRIX, encoding="utf-8")
    return tmp_path


def build(*options: str, out: str = "build", store: str = ".lorac") -> list[dict[str, object]]:
    """The events of a build of the matrix."""
    done = lorac("build", "more/child.toml", "--json", "--out", out, "--store", store, *SMALL, *options)
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_a_matrix_is_one_gang_and_gives_what_its_recipes_give_alone(project: Path) -> None:
    (project / "more/child.toml").write_text(THREE, encoding="utf-8")
    events = build()
    (gang,) = [event["nodes"] for event in events if event["event"] == "GangStarted"]
    assert isinstance(gang, list) and len(gang) == 3
    alone = build("--no-gang", out="alone", store="other")
    assert not [event for event in alone if event["event"] == "GangStarted"]
    for facts in (json.loads(path.read_text("utf-8"))["training"] for path in Path("build").rglob("build.json")):
        assert sorted(facts["trained_together"]) == sorted(gang) and facts["lora_steps_per_second"] > 0
    assert "trained_together" not in next(Path("alone").rglob("build.json")).read_text("utf-8")
    files = list(Path("build").rglob("*.safetensors"))
    assert len(files) == 6, "of two epochs each"
    for path in files:
        ours, theirs = (tensors_of(p) for p in (path, Path("alone") / path.relative_to("build")))
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            if not name.endswith("alpha"):  # the files are float16
                error = (ours[name].float() - tensor.float()).norm()
                assert error <= 5e-3 * tensor.float().norm(), (path, name)
    before = contents(Path("build"))
    for options in ((), ("--no-gang",)):
        again = build(*options)
        assert again[-1]["ran"] == 0
    changed = {name for name, entry in contents(Path("build")).items() if before.get(name) != entry}
    assert not {name for name in changed if not name.rpartition("/")[2].startswith("build.")}


def test_one_recipe_of_a_gang_diverges_and_the_others_are_written(project: Path) -> None:
    Path("more/child.toml").write_text(
        'extends = "../recipe.toml"\nmatrix.train.learning_rate = [1e-3, 1e30, 1e-4]\n', encoding="utf-8"
    )
    done = lorac("build", "-k", "more/child.toml", *SMALL)
    assert done.exit_code == 1 and "diverged" in done.output
    written = {path.parent.name for path in Path("build").rglob("*.safetensors")}
    assert len(written) == 2
    assert all(
        bool(torch.isfinite(t).all()) for p in Path("build").rglob("*.safetensors") for t in tensors_of(p).values()
    )


def test_plan_says_who_trains_together_and_why_not(project: Path) -> None:
    Path("more/own.toml").write_text('extends = "../recipe.toml"\nnetwork.dropout = 0.1\n', encoding="utf-8")
    plan = lorac("plan", "recipe.toml", "more/child.toml", "more/own.toml").stdout
    (together,) = [line for line in plan.splitlines() if line.startswith("trained together: ")]
    assert together.count("child") == 4 and "recipe" in together
    (alone,) = [line for line in plan.splitlines() if line.startswith("trained alone: ")]
    assert alone == "trained alone: own (network.dropout is not for several at once)"
    assert "together" not in lorac("plan", "--no-gang", "recipe.toml", "more/child.toml").stdout
    assert "together" not in lorac("plan", "recipe.toml").stdout
    assert plan.count("at the peak of a step of 5 LoRAs at once") == 1
    assert plan.count('that of the gang: see "trained together" below') == 5
    told = plan.partition("\ntrained together: ")[2].splitlines()
    assert "LoRAs at once" in told[1] and told[-1].startswith("trained alone: "), "its memory is told with the gang"
    (together,) = (
        line
        for line in lorac("plan", "--budget", "1GiB", "more/child.toml").stdout.splitlines()
        if line.startswith("trained tog")
    )
    assert "at a time" not in together
    (together,) = (
        line
        for line in lorac("plan", "--budget", "1MiB", "more/child.toml").stdout.splitlines()
        if line.startswith("trained tog")
    )
    assert together.endswith("(as far as their steps have the same shapes, one at a time: memory holds no more)")

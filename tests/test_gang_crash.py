"""Real processes that are killed or interrupted in the middle of a gang: every LoRA goes on from its snapshots."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lorac.sd.safetensors import tensors_of
from tests.test_crash import Build, done, every_step, litter
from tests.tiny import make_project

MATRIX = """
extends = "base.toml"
sample.prompts = []
regularisation = []
train.epochs = 2
matrix.network.dim = [1, 4]
"""


def stop_in_gang(folder: Path, steps: int, *, kill: bool) -> None:
    """Kill a build, or press Ctrl-C, when its gang has done so many steps of all its LoRAs."""
    build = Build(folder, before=every_step)
    together = False
    for event in build.events():
        together = together or event["event"] == "GangStarted"
        steps -= together and event["event"] == "NodeProgress"
        if not steps:
            build.process.kill() if kill else build.interrupt()
            break
    code, said = build.wait()
    assert together and code not in (0, 1), said


def loras(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in (folder / "build").rglob("*.safetensors")}


def steps(folder: Path) -> list[float]:
    """How many the last build did, of each LoRA."""
    return [json.loads(path.read_text("utf-8"))["training"]["steps"] for path in folder.rglob("build.json")]


def test_a_gang_that_is_stopped_three_times(tiny_base: Path, tmp_path: Path) -> None:
    whole = make_project(tmp_path / "whole", tiny_base)
    (whole / "recipe.toml").rename(whole / "base.toml")
    (whole / "recipe.toml").write_text(MATRIX, "utf-8")
    stopped = tmp_path / "stopped"
    shutil.copytree(whole, stopped)
    done(whole)
    stop_in_gang(stopped, 2, kill=True)
    stop_in_gang(stopped, 3, kill=False)
    stop_in_gang(stopped, 3, kill=True)
    done(stopped, before=every_step)
    assert loras(stopped).keys() == loras(whole).keys() and len(loras(whole)) >= 2
    for name, path in loras(whole).items():
        ours, expected = tensors_of(loras(stopped)[name]), tensors_of(path)
        for key, tensor in expected.items():
            assert (ours[key].float() - tensor.float()).norm() <= 2e-3 * tensor.float().norm(), (name, key)
    assert sum(steps(stopped)) <= sum(steps(whole)) - 6, "what was kept is not trained again"
    assert litter(stopped) == []
    assert not any((stopped / ".lorac/scratch").iterdir())

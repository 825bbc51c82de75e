"""Real processes, killed, interrupted and run beside each other: the next build gives what an undisturbed one gives."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lorac.digest import digest
from lorac.rng import Stream
from tests.tiny import make_project

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "numpy", "PIL", "transformers", "tokenizers", "rich")
CAN_FORK = "forkserver" in multiprocessing.get_all_start_methods()
MODULES = ["lorac.sd.checkpoint", "lorac.sd.clip", "lorac.sd.tokenizer", "lorac.train.loop", "lorac.cli", "PIL.Image"]
"""Loaded once by the process of which the builds are forks: importing torch takes longer than a build."""

if CAN_FORK:
    multiprocessing.set_forkserver_preload(MODULES)
PROCESSES: Any = multiprocessing.get_context("forkserver" if CAN_FORK else "spawn")


def every_step() -> None:
    """As if training took long: a snapshot after every step."""
    from lorac.kinds import training

    training.SNAPSHOT_SECONDS = 0.0


def deaf() -> None:
    """Captions take ten minutes and do not listen, like a long call into a library."""
    from lorac.kinds import caption

    def run(work: Any) -> Iterator[Any]:
        work.progress(0, 1, "captions")
        time.sleep(600)
        yield

    caption.run = run


def lorac(folder: Path, log: Path, options: Sequence[str], before: Callable[[], None] | None) -> None:
    """In a process of its own: `lorac build --json recipe.toml` in `folder`."""
    import torch

    from lorac.cli import main

    torch.set_num_threads(1)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background has it ignored
    with log.open("wb", buffering=0) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    if before is not None:
        before()
    main(["build", "recipe.toml", "--json", "-j", "2", *options])


class Build:
    """A running build."""

    def __init__(self, folder: Path, *options: str, before: Callable[[], None] | None = None) -> None:
        self.log = folder / f"{time.time_ns()}.log"
        self.log.touch()
        self.process = PROCESSES.Process(target=lorac, args=(folder, self.log, options, before))
        self.process.start()

    def events(self) -> Iterator[dict[str, Any]]:
        """What it tells, while it runs."""
        with self.log.open("rb") as file:
            line = b""
            while True:
                ended = not self.process.is_alive()
                while piece := file.readline():
                    line += piece
                    if line.endswith(b"\n"):
                        if line.startswith(b"{"):
                            yield json.loads(line)
                        line = b""
                if ended:
                    return
                time.sleep(0.002)

    def wait(self) -> tuple[int | None, str]:
        """(exit code, all that it said)."""
        self.process.join(300)
        return self.process.exitcode, self.log.read_text("utf-8")

    def interrupt(self) -> None:
        """Ctrl-C."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGINT)

    def kill_after(self, count: int) -> None:
        """SIGKILL when that many events have been told."""
        for number, _ in enumerate(self.events()):
            if number == count:
                self.process.kill()
                break
        self.wait()


def done(folder: Path, *options: str, before: Callable[[], None] | None = None) -> None:
    code, said = Build(folder, *options, before=before).wait()
    assert code == 0, said


def outputs(folder: Path) -> dict[str, str]:
    """file -> SHA-256 of what is really there."""
    return {path.name: digest(path.read_bytes()).hex() for path in folder.iterdir() if path.stem != "build"}


def facts(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "build.json").read_text("utf-8"))
    return loaded


def litter(folder: Path) -> list[Path]:
    """Temporary files outside the folders that are swept."""
    return [path for path in folder.rglob(".*.tmp") if path.parent.name not in ("tmp", "recipe")]


@pytest.fixture(scope="module")
def undisturbed(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after a build that nobody disturbed."""
    folder = make_project(tmp_path_factory.mktemp("undisturbed"), tiny_base)
    done(folder)
    return folder


@pytest.fixture
def fresh(undisturbed: Path, tmp_path: Path) -> Path:
    """The same project in another folder, never built."""
    folder = tmp_path / "another フォルダ"
    shutil.copytree(undisturbed, folder, ignore=shutil.ignore_patterns(".lorac", "build"))
    return folder


def test_two_clean_builds_in_different_folders_give_the_same_files(undisturbed: Path, fresh: Path) -> None:
    done(fresh, "-j", "1")
    assert outputs(fresh / "build/recipe") == outputs(undisturbed / "build/recipe")
    assert len(outputs(fresh / "build/recipe")) == 5
    assert facts(fresh / "build/recipe")["hits"] == 0


def test_a_second_build_makes_nothing_and_imports_nothing_heavy(undisturbed: Path) -> None:
    before = outputs(undisturbed / "build/recipe")
    code = f"""
import sys
from lorac.cli import main
try:
    main(["build", "recipe.toml"])
finally:
    print(sorted(set(sys.modules) & {set(HEAVY)}))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], cwd=undisturbed, env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout.splitlines()[-1]) == (0, "[]"), run.stderr
    assert facts(undisturbed / "build/recipe")["runs"] == 0
    assert outputs(undisturbed / "build/recipe") == before


def kill_and_finish(fresh: Path, undisturbed: Path, moments: list[Callable[[Build], object]]) -> None:
    for moment in moments:
        moment(Build(fresh, before=every_step))
    done(fresh, before=every_step)
    assert outputs(fresh / "build/recipe") == outputs(undisturbed / "build/recipe")
    assert litter(fresh) == []
    assert not any((fresh / ".lorac/scratch").iterdir())
    done(fresh)
    assert facts(fresh / "build/recipe")["runs"] == 0


def test_a_build_that_is_killed_four_times_gives_the_same_files(undisturbed: Path, fresh: Path) -> None:
    """At random places among the 60 or so events, of which each step of training is one."""
    stream = Stream(11, "moments of a crash")
    moments = sorted(stream.below(50) for _ in range(4))
    kill_and_finish(fresh, undisturbed, [lambda build, count=count: build.kill_after(count) for count in moments])  # type: ignore[misc]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_build_that_is_killed_ten_times_gives_the_same_files(undisturbed: Path, fresh: Path, seed: int) -> None:
    """At random times, wherever the processes are then."""
    stream = Stream(seed, "times of a crash")

    def after(seconds: float) -> Callable[[Build], None]:
        def kill(build: Build) -> None:
            time.sleep(seconds)
            build.process.kill()
            build.wait()

        return kill

    kill_and_finish(fresh, undisturbed, [after(stream.uniform() * 4) for _ in range(10)])


@pytest.mark.skipif(os.name == "nt", reason="processes cannot send each other Ctrl-C there")
def test_ctrl_c_saves_the_training_and_the_next_build_goes_on_from_there(undisturbed: Path, fresh: Path) -> None:
    build = Build(fresh)  # it is too short for a snapshot every 30 s: there is only that of the interruption
    steps = 0.0
    for event in build.events():
        if event["event"] == "NodeProgress" and event["kind"] == "train" and event["done"] >= 5:
            steps = event["done"]
            build.interrupt()
            break
    code, said = build.wait()
    assert code == 130, said
    assert "goes on from here" in said
    assert "Traceback" not in said
    assert not (fresh / "build/recipe/recipe.safetensors").exists()
    done(fresh)
    assert outputs(fresh / "build/recipe") == outputs(undisturbed / "build/recipe")
    total = 2 * 2 * 2 * 3  # epochs, repeats, with regularisation pictures, pictures
    assert 0 < facts(fresh / "build/recipe")["training"]["steps"] <= total - steps
    assert facts(fresh / "build/recipe")["kinds"]["latent"]["runs"] == 0


@pytest.mark.skipif(os.name == "nt", reason="processes cannot send each other Ctrl-C there")
def test_a_second_ctrl_c_ends_at_once(fresh: Path) -> None:
    build = Build(fresh, before=deaf)
    for event in build.events():
        if event["event"] == "NodeProgress" and event["kind"] == "caption":
            build.interrupt()
            break
    for _ in range(3):  # two, and one more for a signal that Python drops: one that falls into a destructor is ignored
        build.process.join(5)
        if build.process.is_alive():
            build.interrupt()
    code, said = build.wait()
    assert code == 130
    assert "Ctrl-C again" in said


def test_two_builds_at_once_both_succeed_and_share_the_work(undisturbed: Path, fresh: Path) -> None:
    builds = [Build(fresh, "--out", out) for out in ("one", "two")]
    for build in builds:
        code, said = build.wait()
        assert code == 0, said
    found = [facts(fresh / out / "recipe") for out in ("one", "two")]
    assert sorted(entry["runs"] for entry in found) == [0, facts_of_all(undisturbed)]
    for out in ("one", "two"):
        assert outputs(fresh / out / "recipe") == outputs(undisturbed / "build/recipe")


def facts_of_all(folder: Path) -> int:
    """How many items a build has."""
    found = facts(folder / "build/recipe")
    return int(found["runs"] + found["hits"])

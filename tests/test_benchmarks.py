"""What the benchmarks compute besides times: FLOPs, kept bytes, comparison with floors, tables. Nothing is timed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import floors, tables
from benchmarks.__main__ import FULL, QUICK
from benchmarks.common import ROOT, Series, times
from benchmarks.demo import facts_of
from benchmarks.figures import FIGURES, Figure
from benchmarks.flops import unet_step
from benchmarks.models import SIZES, Size, draw
from benchmarks.ours import LoracStep
from benchmarks.peer import PeftStep
from benchmarks.saved import MARK, measure, totals
from lorac.sd.clip import TextConfig
from lorac.sd.unet import UNetConfig

UNET = UNetConfig(width=16, context=16, heads=2, groups=4)
TEXT = TextConfig(width=16, layers=12, heads=2, inner=32)
SMALL = replace(SIZES["full"], name="small", unet=UNET, text=TEXT, rank=8)
RATIO = Figure("some-ratio", "some words", ("step", "a-case", "ratio"), 2.0)
KEPT = Figure("some-bytes", "fewer bytes", ("saved", "a-case", "ratio"), 0.5, at_most=True)


def write(folder: Path, file: str, value: float) -> None:
    case = {"ratio": value, "commit": "abc", "machine": {"cpu": "a cpu"}}
    (folder / f"{file}.json").write_text(json.dumps({"cases": {"a-case": case}}), encoding="utf-8")


@pytest.mark.parametrize(("px", "batch"), [(64, 1), (120, 2)])  # 120: latents of 15, which halve to 8, 4, 2
def test_flops_are_those_that_torch_counts_in_the_peer(px: int, batch: int) -> None:
    step = PeftStep(draw(SMALL), px, batch)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step(0)
    counted = unet_step(SMALL.unet, (px // 8, px // 8), batch, 77, SMALL.rank)
    assert counted.total == counter.get_total_flops()


def test_flops_of_sd15_are_those_of_the_profile() -> None:
    """performance.md §4, in TFLOP: forward, backward, LoRA."""
    found = unet_step(SIZES["full"].unet, (64, 64), 1, 77, 128)
    parts = (found.frozen_forward, found.frozen_backward, found.lora_forward, found.lora_backward)
    assert [round(part / 1e12, 2) for part in parts] == [0.80, 0.91, 0.09, 0.18]


TRAINED = replace(SIZES["mini"], unet=UNET, text=TEXT, rank=8)


@pytest.mark.parametrize("size", [SMALL, TRAINED], ids=["frozen", "trained"])
def test_both_sides_begin_with_the_same_loss(size: Size) -> None:
    """The up factors are 0 at first, so on the same noise both are the bare base."""
    models = draw(size)
    peer, ours = PeftStep(models, 64, 1), LoracStep(models, 64, 1)
    ours.pictures.latents[0].copy_(peer.latents[0] / 0.18215)
    with pytest.MonkeyPatch.context() as patch:
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        patch.setattr(torch, "randn_like", lambda _: noise)
        expected = peer(0)
    assert [float(loss) for loss in ours(0)] == pytest.approx([expected], rel=1e-4)


def test_bytes_kept_and_largest() -> None:
    events = [("[memory]", 100), ("[memory]", 50), ("[memory]", -100), (MARK, 0), ("[memory]", 30), ("[memory]", -80)]
    assert totals(iter(events)) == {"saved_bytes": 50, "peak_bytes": 150}


def test_bytes_of_a_known_step() -> None:
    """`exp` keeps its output and nothing else; the sum is 4 bytes."""

    class Exponentials:
        """`kept` lives from step to step, and is taken when the first is finished."""

        def __init__(self) -> None:
            self.x, self.kept = torch.zeros(1000, requires_grad=True), torch.empty(0)

        def __call__(self, _: int) -> None:
            torch.autograd.backward(self.x.exp().exp().sum())
            self.x.grad = None

        def finish(self) -> None:
            self.kept = torch.zeros(5000)

    assert measure(Exponentials())["saved_bytes"] == pytest.approx(2 * 4000, abs=256)


def test_a_ratio_is_the_median_of_rounds() -> None:
    series = {"slow": Series("slow", [4.0, 90.0, 6.0]), "fast": Series("fast", [2.0, 30.0, 1.0])}
    assert times(series, "slow", "fast") == 3.0


@pytest.mark.parametrize(
    ("ratio", "kept", "named"),
    [(2.0, 0.5, []), (1.9, 0.5, ["some-ratio"]), (2.5, 0.6, ["some-bytes"]), (float("nan"), 0.4, ["some-ratio"])],
)
def test_floors(tmp_path: Path, ratio: float, kept: float, named: list[str]) -> None:
    write(tmp_path, "step", ratio)
    write(tmp_path, "saved", kept)
    lines = floors.problems([RATIO, KEPT], {"some-ratio": 2.0, "some-bytes": 0.5}, tmp_path)
    assert [line.partition(":")[0] for line in lines] == named
    assert all("floors.toml" in line and "benchmarks/results/" in line for line in lines)


def test_a_floor_without_a_figure_is_named(tmp_path: Path) -> None:
    (line,) = floors.problems([RATIO, KEPT], {"some-ratio": 2.0}, tmp_path)
    assert line.startswith("some-ratio: benchmarks/results/step.json has no figure")


def test_floors_exit_with_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="a figure: too slow"):
        floors.report(["a figure: too slow"])
    floors.report([])
    assert "every ratio" in capsys.readouterr().out


def test_set_floors_lie_below_what_was_measured(tmp_path: Path) -> None:
    text = floors.written()
    (tmp_path / "floors.toml").write_text(text, encoding="utf-8")
    limits = floors.load(tmp_path / "floors.toml")
    assert floors.problems(FIGURES, limits) == []
    for figure in FIGURES:
        value = figure.value()
        if value is not None and figure.compared:
            worse = value * (1.3 if figure.at_most else 0.7)
            assert worse > limits[figure.key] if figure.at_most else worse < limits[figure.key]


def test_committed_floors_are_those_of_committed_results() -> None:
    """Every ratio that was measured has a limit, and keeps it."""
    measured = {figure.key for figure in FIGURES if figure.compared and figure.value() is not None}
    assert set(floors.load()) == measured
    assert floors.problems(FIGURES, floors.load()) == []


def test_every_figure_is_measured_by_a_job() -> None:
    measured = {(job.module, case) for job in QUICK + FULL for case in job.cases}
    assert {figure.path[:2] for figure in FIGURES} <= measured
    assert sum(job.seconds for job in QUICK) < 15 * 60


def test_tables_are_those_of_the_results() -> None:
    for path, name, make in tables.PLACES:
        text = path.read_text("utf-8")
        assert f"<!-- {name}:" in text
        assert tables.filled(text, name, make()) == text, "run python -m benchmarks.tables"


def test_a_table_is_put_between_its_markers(tmp_path: Path) -> None:
    text = "a\n<!-- t: written by python -m benchmarks.tables -->\nold\n<!-- end of t -->\nb\n"
    assert tables.filled(text, "t", "new") == text.replace("old", "new")
    assert tables.filled(text.replace("old\n", ""), "t", "new") == text.replace("old", "new")
    assert tables.filled("no markers", "t", "new") == "no markers"


def test_every_switch_is_in_the_ablation() -> None:
    from dataclasses import fields

    from benchmarks.ablation import KERNELS, ON_CARD, THINGS
    from lorac.train.switches import Switches

    names = {field.name for field in fields(Switches)} - {"recompute", "attention", "compile"}
    things = {name for things in (*THINGS.values(), ON_CARD) for name in things}
    assert things - set(KERNELS) == names == set(tables.SWITCHES)
    files = {path.stem for path in (ROOT / "kernels").glob("*.py")} - {"__init__", "gate"}
    assert set(KERNELS) & things == set(KERNELS) == files


@pytest.mark.parametrize(("steps", "extrapolated", "whole"), [(2808, False, 130.0), (808, True, 530.0)])
def test_a_shortened_demo_says_so(steps: int, extrapolated: bool, whole: float) -> None:
    built: Mapping[str, Any] = {"training": {"steps": steps, "steps_per_second": 5.0}, "kinds": {}}
    arrivals = [10.0, 12.0, 13.0, 13.2, 13.4, 13.6]  # the first steps are slow, those of the second half count
    facts = facts_of(dict(built), 130.0, arrivals)
    assert (facts["extrapolated"], facts["whole_seconds"]) == (extrapolated, whole)


def test_the_workflow_runs_what_make_has() -> None:
    assert "run: make bench" in (ROOT / ".github" / "workflows" / "bench.yml").read_text("utf-8")
    assert "\nbench: " in (ROOT / "Makefile").read_text("utf-8")

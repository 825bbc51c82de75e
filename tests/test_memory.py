"""The memory planner: parts against real models, peaks against a step's living bytes, the choice, and its words."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from benchmarks.live import Live
from benchmarks.peaks import Setting, Size, measure, models, on_real_cpu, step, trainer_of
from lorac.cli import main
from lorac.errors import InputError
from lorac.kinds.gang_size import SLOWER
from lorac.plan_memory import rows
from lorac.recipe.base import base_facts, base_shapes
from lorac.sd import lora
from lorac.sd.clip import TextConfig
from lorac.sd.lora import LoRANetwork
from lorac.sd.lora_names import PARTS
from lorac.sd.lora_settings import NetworkSettings
from lorac.sd.unet import UNetConfig
from lorac.train import tape, text_states
from lorac.train.member import Member
from lorac.train.memory.budget import free_on_card, parse, shown
from lorac.train.memory.choose import choose, holds, remedies
from lorac.train.memory.predict import predict
from lorac.train.memory.run import MERGED_LIMIT, TAPES, TEXT_STATES, Plan, Run
from lorac.train.memory.shapes import Sizes, factors, ranks
from lorac.train.objective import Pictures
from lorac.train.slices import Sample, Step
from lorac.train.step import Trainer
from lorac.train.switches import Recompute, Switches
from tests.small import TEXT, UNET, base

BOTH = ("unet", "text_encoder")
GIB = 2**30


def _run(batch: int = 1, targets: tuple[str, ...] = BOTH, rank: int = 128, **more: object) -> Run:
    network = ranks(NetworkSettings(rank, float(rank)).adapters(targets))
    return Run(Sizes(), (network,), batch=batch, cuda=True, **more)  # type: ignore[arg-type]


def test_parameters_are_those_of_the_models() -> None:
    unet, text = base()
    sizes = Sizes(UNET.width, UNET.context, UNET.heads, text=TEXT.width, text_inner=TEXT.inner)
    assert sizes.unet_weights() == sum(p.numel() for p in unet.parameters())
    assert sizes.text_weights() == sum(p.numel() for p in text.parameters())
    assert (Sizes().unet_weights(), Sizes().text_weights()) == (859_520_964, 123_060_480)
    for conv in (None, 8):
        settings = NetworkSettings(16, 16.0, conv_dim=conv)
        network = LoRANetwork(unet, text, settings)
        expected = sum(p.numel() for part in PARTS for p in network.parameters(part))
        assert factors(sizes, ranks(settings.adapters(BOTH))) == expected


def test_sizes_are_read_from_headers() -> None:
    facts = base_facts("builtin:mini", "recipe")
    assert Sizes.of(base_shapes(facts.path), facts.heads) == Sizes(32, 64, 2, text=64, text_inner=256)
    assert Sizes.of({}, 8) == Sizes()


@pytest.mark.parametrize(
    ("setting", "steps"),
    [
        (Setting(128), [Size(512, 512, 4)]),
        (Setting(16, level=Recompute.NOTHING), [Size(320, 256, 8)]),
        (Setting(32, ("unet",), Recompute.FEED_FORWARD, gang=2, chunks=3), [Size(384, 512, 2)]),
        (Setting(256, level=Recompute.TRANSFORMER), [Size(256, 256, 8)]),
        (Setting(128, ("unet",), Recompute.BLOCK, away=True), [Size(512, 512, 1)]),
        (Setting(32, gang=2, split=2), [Size(256, 384, 3), Size(384, 256, 4)]),
        (Setting(128, kernels=True), [Size(512, 512, 4)]),
        (Setting(16, level=Recompute.NOTHING, kernels=True), [Size(320, 256, 8)]),
        (Setting(32, ("unet",), Recompute.BLOCK, kernels=True), [Size(384, 512, 4)]),
    ],
)
def test_predicted_peaks_on_a_card(setting: Setting, steps: list[Size]) -> None:
    """With and without Triton's kernels, which take less. The error allowed is 5 %; one of 0.75 % would show that a
    part is missing."""
    for point in measure(setting, steps):
        assert abs(point.error) < 0.0075, point


@pytest.mark.parametrize(
    ("setting", "size"),
    [
        (Setting(8, ("unet",), Recompute.NOTHING, gang=2, half=False), Size(384, 256, 2)),
        (Setting(64, ("unet",), Recompute.BLOCK, half=False), Size(512, 512, 2)),
    ],
)
def test_predicted_peaks_on_a_cpu(setting: Setting, size: Size) -> None:
    """With the transformed weights of minimal filtering, two fifths of all."""
    (point,) = measure(setting, [size])
    assert abs(point.error) < 0.0075, point


@pytest.mark.parametrize("split", [1, 2])
def test_predicted_peaks_of_a_merged_base(split: int) -> None:
    """Of `builtin:mini`'s size, without what a tape keeps for playback, which is not predicted."""
    mini = UNetConfig(32, 64, 2), TextConfig(64, 12, 1, 256)
    setting = Setting(16, level=Recompute.NOTHING, half=False, tape=False, split=split)
    (point,) = measure(setting, [Size(128, 128, 4)], *mini)
    assert abs(point.error) < 0.0075, point


def test_living_bytes_are_those_of_the_allocator() -> None:
    """Of a step without numbers, and of one with."""
    configs, setting, size = (
        (UNetConfig(32, 32, 2), TextConfig(32, 12, 2, 64)),
        Setting(64, half=False),
        Size(64, 96, 2),
    )
    with Live("cpu") as live:
        trainer = trainer_of(models(*configs), setting)
        for index in range(2):
            step(trainer, size, index)
    assert live.peak == pytest.approx(on_real_cpu(setting, size, *configs), rel=0.01)


def test_limits_are_those_of_the_code() -> None:
    assert (TEXT_STATES, MERGED_LIMIT, TAPES) == (text_states.LIMIT, lora.MERGED_LIMIT, tape.LIMIT + tape.HELD)


def _half_trained(level: Recompute) -> tuple[LoRANetwork, dict[str, Tensor]]:
    """A LoRA on a small base of half precision, after two steps."""
    base = models(UNetConfig(32, 32, 2), TextConfig(32, 12, 2, 64), torch.bfloat16)
    for number, model in enumerate(base):
        generator = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.05).bfloat16()
    network = LoRANetwork(*base, NetworkSettings(4, 4.0), seed=1, merged=False)
    trainer = Trainer(*base, [Member(network)], clip_skip=2, switches=Switches(recompute=level, beside=False))
    for index in range(2):
        samples = [Sample(0, 37, index, 1.0, [320, 321])]
        trainer.step([(Step(index, 1e-2, 1e-2, [samples]), Pictures([torch.ones(4, 8, 8)]))])
    trainer.members[0].load_state(state := trainer.members[0].state())
    assert not any(layer.lora for stack in network.stacks for layer in stack.layers)
    return network, state


def test_factors_cast_when_read_give_the_same_bits() -> None:
    kept, cast = _half_trained(Recompute.FEED_FORWARD), _half_trained(Recompute.TRANSFORMER)
    assert all(torch.equal(tensor, cast[1][name]) for name, tensor in kept[1].items())
    assert all(stack.copies for stack in kept[0].stacks) and not any(stack.copies for stack in cast[0].stacks)


def test_states_of_captions_from_a_text_encoder_elsewhere() -> None:
    _, text = base()
    ids_BKL = torch.randint(0, 49000, (2, 1, 77))
    states_BLD = text_states.TextStates(text, 2).of(ids_BKL, torch.device("meta"), torch.float16)
    assert (states_BLD.device.type, states_BLD.dtype, len(states_BLD)) == ("meta", torch.float16, 2)


def test_deeper_recomputing_and_more_passes_take_less_memory_and_more_time() -> None:
    run = _run(4)
    for outcomes in (
        [predict(run, Plan(1, level)) for level in Recompute],
        [predict(run, Plan(split)) for split in (1, 2, 4)],
    ):
        totals, works = [each.total for each in outcomes], [each.work for each in outcomes]
        assert totals == sorted(totals, reverse=True) and works == sorted(works)


@pytest.mark.parametrize(
    ("gib", "batch", "targets", "split", "level"),
    [
        (8, 4, BOTH, 1, Recompute.NOTHING),
        (6, 4, ("unet",), 1, Recompute.ELEMENTWISE),
        (4, 1, ("unet",), 1, Recompute.ELEMENTWISE),
        (4, 4, ("unet",), 2, Recompute.FEED_FORWARD),
        (3, 1, ("unet",), 1, Recompute.BLOCK),
    ],
)
def test_tiers(gib: int, batch: int, targets: tuple[str, ...], split: int, level: Recompute) -> None:
    """512 px, rank 128, AdamW with float32 states, by the predictions."""
    chosen = choose(_run(batch, targets), gib * GIB).chosen
    assert chosen is not None
    assert (chosen.plan.split, chosen.plan.recompute) == (split, level)
    assert chosen.plan.tapes == gib * GIB - chosen.prediction.total, "what graphs may hold beside a pass"
    assert chosen.plan.away == (gib == 3)


def test_nothing_is_computed_again_only_where_more_than_that_is_free() -> None:
    run = _run(1, BOTH)
    total = predict(run, Plan(recompute=Recompute.NOTHING)).total
    levels = [choose(run, int(total * share)).chosen for share in (1.0, 1.04, 1.06)]
    assert [chosen and chosen.plan.recompute for chosen in levels] == [
        Recompute.ELEMENTWISE,
        Recompute.ELEMENTWISE,
        Recompute.NOTHING,
    ]


def test_a_gang_may_compute_feed_forward_layers_again() -> None:
    run = _run(1, BOTH)
    budget = predict(run, Plan(recompute=Recompute.FEED_FORWARD)).total
    assert holds(run, budget, SLOWER)
    assert not holds(run, predict(run, Plan(recompute=Recompute.BLOCK)).total, SLOWER)


def test_what_does_not_fit_is_said_with_what_does() -> None:
    run = _run(1, ("unet",), captions=100)
    text = "\n".join(f"{name} {text}" for name, text in rows(run, 3 * GIB))
    assert "whole blocks are computed again; the text encoder is on the CPU" in text
    assert "states of captions" in "\n".join(text for _, text in rows(run, 8 * GIB))
    assert choose(run, 2 * GIB).chosen is None
    assert any("network.dim" in remedy.text for remedy in remedies(run, int(2.7 * GIB)))


def test_the_quickest_plan_that_fits_is_taken() -> None:
    run = _run(4)
    free = choose(run, None)
    assert free.chosen is not None and free.times(free.chosen) == 1.0
    tight = choose(run, free.chosen.prediction.total - 1)
    assert tight.chosen is not None and tight.chosen.prediction.total < free.chosen.prediction.total
    fits = [o for o in tight.others if o.prediction.total <= free.chosen.prediction.total - 1]
    assert all(o.prediction.work >= tight.chosen.prediction.work for o in fits)


def test_remedies_fit() -> None:
    run = replace(_run(1, rank=256), ema=True)
    budget = 3 * GIB
    found = remedies(run, budget)
    assert found and all(remedy.total <= budget for remedy in found)


@pytest.mark.parametrize(
    ("text", "size"), [("8GiB", 8 * GIB), ("7.5 gib", int(7.5 * GIB)), ("6000MB", 6 * 10**9), ("512MiB", 2**29)]
)
def test_budgets(text: str, size: int) -> None:
    assert parse(text) == size


@pytest.mark.parametrize("text", ["8", "GiB", "-1GiB", "0GiB", "8Foo", ""])
def test_bad_budgets(text: str) -> None:
    with pytest.raises(InputError, match="write it as 8GiB"):
        parse(text)


def test_sizes_in_words() -> None:
    assert (shown(7.4 * GIB), shown(2**29)) == ("7.40 GiB", "512 MiB")


def _driver(folder: Path, monkeypatch: pytest.MonkeyPatch, free: int) -> Path:
    """A program that answers for a driver's; returns the file with the arguments of its last call."""
    (folder / "bin").mkdir()
    program = folder / "bin" / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "$*" > "{folder}/asked"\necho {free}\n', "utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    return folder / "asked"


@pytest.mark.skipif(sys.platform == "win32", reason="the driver's program is a shell script here")
@pytest.mark.parametrize(
    ("visible", "card"), [(None, "0"), ("2,0", "2"), ("GPU-8f3a", "GPU-8f3a"), ("", None), ("-1", None)]
)
def test_the_card_is_the_one_that_torch_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, card: str | None
) -> None:
    asked = _driver(tmp_path, monkeypatch, 7000)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert free_on_card() == (7000 * 2**20 if card else None)
    assert asked.exists() == bool(card) and (card is None or f"--id={card}" in asked.read_text("utf-8").split())


@pytest.mark.skipif(sys.platform == "win32", reason="the driver's program is a shell script here")
def test_a_build_is_held_to_what_the_card_has_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before work begins."""
    _driver(tmp_path, monkeypatch, 300)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    refused = CliRunner().invoke(main, ["build", str(_pictures(tmp_path)), "--store", str(tmp_path / "store")])
    assert refused.exit_code == 2
    assert "429 MiB of it for CUDA and its libraries, and may take 300 MiB" in refused.output
    assert not list((tmp_path / "store").rglob("*.safetensors"))


def test_a_budget_says_what_it_does_not_hold_to(tmp_path: Path) -> None:
    options = ["--store", str(tmp_path / "store"), "--set", "network.dropout=0.1", "--budget", "100MiB", "--dry-run"]
    done = CliRunner().invoke(main, ["build", str(_pictures(tmp_path)), *options])
    assert done.exit_code == 0, done.output
    assert "small: warning: memory is not predicted for LoCon, DoRA and dropouts" in done.output


def test_prediction_needs_no_torch() -> None:
    code = "import sys, lorac.train.memory.choose, lorac.plan_memory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _pictures(folder: Path) -> Path:
    from PIL import Image

    (folder / "pictures").mkdir()
    Image.new("RGB", (128, 128), "white").save(folder / "pictures" / "a.png")
    recipe = folder / "small.toml"
    recipe.write_text('[[source]]\npath = "pictures"\ntrigger = ["x"]\n\n[train]\nsteps = 2\n', "utf-8")
    return recipe


def test_plan_and_build_with_a_budget(tmp_path: Path) -> None:
    recipe = _pictures(tmp_path)
    store = ["--store", str(tmp_path / "store")]
    shown_plan = CliRunner().invoke(main, ["plan", str(recipe), *store, "--budget", "8GiB"])
    assert shown_plan.exit_code == 0, shown_plan.output
    assert "at the peak of a step (within 8.00 GiB)" in shown_plan.output
    assert "no budget" not in shown_plan.output and "plan: each batch in one pass; nothing" in shown_plan.output
    assert len(re.findall(r"not taken: .* × the time\)", shown_plan.output)) == len(Recompute) - 1, "each level"
    free = CliRunner().invoke(main, ["plan", str(recipe), *store], env={"CUDA_VISIBLE_DEVICES": ""})
    assert "not taken" not in free.output and "the base in float32" in free.output
    assert "recorded steps take up to 2.00 GiB more\n" in free.output
    tight = CliRunner().invoke(main, ["plan", str(recipe), *store, "--budget", "1GiB"]).output
    sizes = re.search(r"(\d+) MiB of this.* up to (\d+) MiB more, within", tight, re.DOTALL)
    assert sizes is not None
    peak, rest = map(int, sizes.groups())
    assert abs(peak + rest - 1024) <= 1, "what is told holds together"
    refused = CliRunner().invoke(main, ["build", str(recipe), *store, "--budget", "100MiB"])
    assert refused.exit_code == 2
    assert "small.toml" in refused.output and "and may take 100 MiB" in refused.output
    assert "401 MiB of it for Python and torch" in refused.output
    assert not (tmp_path / "store").exists() or not any((tmp_path / "store").rglob("*.safetensors"))
    (enough,) = re.findall(r"; give --budget (\d+MiB) or more", refused.output)
    assert CliRunner().invoke(main, ["plan", str(recipe), *store, "--budget", enough]).exit_code == 0
    less = f"{int(enough.removesuffix('MiB')) - 1}MiB"
    assert "does not fit" in CliRunner().invoke(main, ["plan", str(recipe), *store, "--budget", less]).output
    recipe.with_name("other.toml").write_text('extends = "small.toml"\nnetwork.dim = 8\n', "utf-8")
    both = [str(recipe), str(recipe.with_name("other.toml"))]
    refused = CliRunner().invoke(main, ["build", *both, *store, "--budget", "100MiB"])
    assert refused.output.count("and may take 100 MiB") == 2, "all problems at once"
    assert CliRunner().invoke(main, ["plan", str(recipe), *store, "--budget", "8Foo"]).exit_code == 2

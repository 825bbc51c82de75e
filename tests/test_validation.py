"""Pictures of `validation.path`: never trained, measured with every saved LoRA, refused like all others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lorac.engine.protocol import Item, Made, Work
from lorac.graph.lower import lower
from lorac.kinds import schedule, validate
from lorac.recipe.load import load
from lorac.sd.safetensors import serialise
from lorac.train.schedule import Schedule
from lorac.train.slices import Sample, Slice, Step, decode, encode
from tests.one_item import of_blobs
from tests.running import lorac, refused
from tests.small import base
from tests.test_kohya import SETTINGS, subset
from tests.test_train_step import CLIP_SKIP, TOKENS, Reference, new_trainer, some_latents
from tests.tiny import draw_pictures, make_project

# -- the schedule ----------------------------------------------------------------------------------


def test_pictures_that_are_never_trained_leave_the_training_as_it_was() -> None:
    sets = [subset(5, 3), subset(4, regularisation=True)]
    how = replace(SETTINGS, epochs=3, save_every_n_epochs=1, shuffle_caption=True, flip_aug=True, split=0.2)
    plain = Schedule(sets, how)
    more = Schedule(sets, how, subset(2, bucket=(64, 512)).items)
    assert [encode(part) for part in more.slices()] == [encode(part) for part in plain.slices()]
    assert replace(more.summary, validation_pictures=1) == plain.summary
    assert more.summary.validation_pictures == 3
    samples = [step.batches[0][0] for step in more.validation().steps()]
    assert [s.item for s in samples] == [i for i in (*plain.held_out, 9, 10) for _ in range(4)]
    assert samples[:4] == [step.batches[0][0] for step in plain.validation().steps()]
    assert [s.timestep for s in samples] == [200, 400, 600, 800] * 3
    assert len({s.noise_seed for s in samples}) == len(samples)


def test_their_noise_is_that_of_every_recipe_that_validates_them() -> None:
    folder = subset(3).items
    few, many = (
        Schedule([subset(count)], replace(SETTINGS, epochs=count, seed=count, validation_seed=5), folder).validation()
        for count in (2, 7)
    )
    assert [few.noise_seed, few.timestep, few.ids] == [many.noise_seed, many.timestep, many.ids]
    assert few.item[0] == 2 and many.item[0] == 7
    other = Schedule([subset(2)], replace(SETTINGS, validation_seed=6), folder).validation()
    assert not {*few.noise_seed} & {*other.noise_seed}


# -- the loss --------------------------------------------------------------------------------------


def columns_of(work: Work, **columns: list[bytes]) -> Work:
    return replace(work, columns={port.replace("_", "."): values for port, values in columns.items()})


def test_the_loss_is_diffusers_over_these_latents_alone() -> None:
    """The kind `schedule` counts the pictures, the kind `validate` finds the latents of what it counted."""
    trained, held_out = some_latents(5, size=8)[:3], some_latents(5, size=8)[3:]
    ids = [[320], [267], [268]]
    blobs = {b"t%d" % i: json.dumps([[tag, tag]]).encode() for i, tag in enumerate(ids)} | {b"64x64": b"64x64"}
    params: dict[str, Any] = {
        "subsets": [{"repeats": 1, "regularisation": kind} for kind in (False, True)],
        "train": {"seed": 1, "epochs": 1, "learning_rate": 1e-3, "max_token_length": TOKENS},
        "lr_unet": 1e-3, "lr_text": 1e-3, "validation_seed": 23,
    }  # fmt: skip
    made = next(iter(schedule.run(columns_of(
        of_blobs(blobs, params=params),
        tokens_0=[b"t0", b"t0"], bucket_0=[b"64x64"] * 2,
        tokens_1=[b"t0"], bucket_1=[b"64x64"],
        tokens_2=[b"t1", b"t2"], bucket_2=[b"64x64"] * 2,
    ))))  # fmt: skip
    assert isinstance(made, Made)
    steps = decode(made.outputs["validation"])  # type: ignore[arg-type]
    assert set(steps.item) == {3, 4} and json.loads(made.outputs["summary"])["validation_pictures"] == 2  # type: ignore[arg-type]

    lora = new_trainer().lora.state()
    unet, text_encoder = base()
    blobs = {
        b"steps": encode(steps),
        b"unet": serialise(unet.state_dict(), {"lorac.config": json.dumps({"heads": 4, "groups": 8})}),
        b"text": serialise(text_encoder.state_dict(), {"lorac.config": json.dumps({"heads": 4})}),
        b"lora": serialise(lora, {}),
    }
    blobs |= {b"l%d" % i: serialise({"mean": m, "logvar": m}, {}) for i, m in enumerate([*trained, *held_out])}
    work = of_blobs(
        blobs,
        params={"clip_skip": CLIP_SKIP, "loss": {}, "prediction": {}},
        items=[Item(0, "", {}, {"lora": b"lora"})],
        shared={"unet": b"unet", "text": b"text", "validation": b"steps"},
    )
    (found,) = validate.run(columns_of(work, latent_0=[b"l0", b"l1"], latent_1=[b"l2"], latent_2=[b"l3", b"l4"]))
    assert isinstance(found, Made)
    alone = Slice.of(
        (
            Step(n, 0.0, 0.0, [[replace(step.batches[0][0], item=step.batches[0][0].item - 3)]])
            for n, step in enumerate(steps.steps())
        ),
        0,
        TOKENS,
    )
    assert [sample.ids for sample in (step.batches[0][0] for step in alone.steps())] == [[267]] * 4 + [[268]] * 4
    with torch.no_grad():
        without = {name: t if t.dim() == 0 else t * 0 for name, t in lora.items()}
        expected = {
            name: float(torch.stack([reference.loss(step, held_out) for step in alone.steps()]).mean())
            for name, state in (("base", without), ("lora", lora))
            for reference in [Reference(*base(), state)]
        }
    assert json.loads(found.outputs["losses"]) == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]
    assert abs(expected["base"] - expected["lora"]) > 1e-4


def test_held_out_pictures_that_are_trained_too_are_counted() -> None:
    steps = Slice.of([Step(0, 0.0, 0.0, [[Sample(i, 200, 1, 1.0, [1])]]) for i in (1, 3, 4)], 0, TOKENS)
    work = columns_of(of_blobs({}), latent_10=[b"b", b"e"], latent_2=[b"a", b"x", b"b"])
    assert validate._also_trained(work, steps) == 1


# -- a project -------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(make_project(tmp_path, tiny_base))
    draw_pictures(tmp_path / "kept back", 2, seed=7)
    return tmp_path


HELD_OUT = ("--set", "validation.path='kept back'")
SMALL = ("--set", "train.epochs=1", "--set", "sample.prompts=[]", "--set", "regularisation=[]")


def ran(*arguments: str) -> dict[str, int]:
    done = lorac("build", "recipe.toml", *SMALL, "--json", *arguments)
    assert done.exit_code == 0, done.output
    events = map(json.loads, done.stdout.splitlines())
    return {event["kind"]: event["ran"] for event in events if event["event"] == "NodeFinished" and event["ran"]}


def test_changing_them_trains_nothing_again(project: Path) -> None:
    assert ran()["train"] == 1
    more = ran(*HELD_OUT, "--set", "validation.trigger=['izumi riho']")
    assert set(more) == {"image", "caption", "tokens", "latent", "schedule", "validate", "export", "sidecar", "report"}
    page = (project / "build/recipe/report.html").read_text(encoding="utf-8")
    assert "Loss of held-out pictures" in page
    draw_pictures(project / "kept back", 3, seed=7)
    again = ran(*HELD_OUT, "--set", "validation.trigger=['izumi riho']")
    assert "train" not in again and again["image"] == 1 and again["validate"] == 1


def test_plan_and_captions_show_them(project: Path) -> None:
    before = lorac("plan", "recipe.toml").stdout
    shown = lorac("plan", "recipe.toml", *HELD_OUT).stdout
    assert "  held out        kept back: 2 pictures\n" in shown
    assert "2 pictures held out of training, measured at timesteps 200, 400, 600, 800" in shown
    assert [row for row in before.splitlines() if row.startswith(("  run", "  epoch", "  buckets"))] == [
        row for row in shown.splitlines() if row.startswith(("  run", "  epoch", "  buckets"))
    ]
    both = lorac("plan", "recipe.toml", *HELD_OUT, "--set", "validation.split=0.4").stdout
    assert "3 pictures held out of training" in both
    listed = lorac("captions", "recipe.toml", *HELD_OUT, "--set", "validation.trigger=['held']").stdout
    assert listed.count("kept back/") == 2 and listed.count("  held, colour") == 2
    (project / "kept back/絵 00.txt").unlink()
    unusable = lorac("plan", "recipe.toml", *HELD_OUT, "--set", "validation.trigger=[]").stdout
    assert "unusable        1 picture without a caption, and no trigger words instead" in unusable


def test_what_is_wrong_with_them_is_told_with_the_rest(project: Path) -> None:
    (project / "kept back/bad.png").write_bytes(b"no picture")
    (project / "kept back/絵 00.txt").write_bytes(b"\xff")
    (project / "pictures/bad.png").write_bytes(b"no picture")
    messages = refused("build", "recipe.toml", *SMALL, *HELD_OUT)
    files = {message.split(":")[0] for message in messages}
    assert files >= {"kept back/bad.png", "kept back/絵 00.txt", "pictures/bad.png"}
    (message,) = refused("check", "recipe.toml", *HELD_OUT)
    assert message.startswith("kept back/絵 00.txt: the caption ")


WITHOUT_PATH = "[validation] is for the pictures of path, which is not given; add path"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('path = "keptback"', 'path "keptback" does not exist; did you mean "kept back"?'),
        ('path = "keptback/*.png"', 'path "keptback" does not exist; did you mean "kept back"?'),
        (
            'path = "./pictures"',
            'the pictures of "pictures" are trained and cannot be held out; move some into another folder, '
            "or give split instead of path",
        ),
        ('trigger = ["a"]', f"trigger in {WITHOUT_PATH}, or take trigger out"),
        ('alpha = "white"', f"alpha in {WITHOUT_PATH}, or take alpha out"),
    ],
)
def test_a_mistake_has_its_line(project: Path, line: str, message: str) -> None:
    recipe = project / "recipe.toml"
    text = f"{recipe.read_text(encoding='utf-8')}\n[validation]\n{line}"
    recipe.write_text(text, encoding="utf-8")
    assert refused("plan", "recipe.toml") == [f"recipe.toml:{len(text.splitlines())}: {message}"]


def test_a_folder_without_pictures_is_named_with_its_line(project: Path) -> None:
    (project / "empty").mkdir()
    (message,) = refused("plan", "recipe.toml", "--set", "validation.path=empty")
    assert message.startswith('--set validation.path=empty: no pictures in "empty"')


def test_where_they_lie_is_in_no_key(project: Path) -> None:
    (recipe,) = load([project / "recipe.toml"], [f"validation.path='{project / 'kept back'}'"])
    graph = lower([recipe])
    assert not [node.name for node in graph.nodes if str(project) in str((node.params, node.items))]
    (export,) = (node for node in graph.nodes if node.kind == "export")
    sections: Any = export.params["sections"]
    assert sections["validation"]["path"] == "kept back"


def test_without_triggers_of_their_own_they_have_those_of_the_sources(project: Path) -> None:
    def trigger(*sets: str) -> tuple[str, ...]:
        (recipe,) = load([project / "recipe.toml"], [f"validation.path='{project / 'kept back'}'", *sets])
        assert recipe.held_out is not None
        return recipe.held_out.trigger

    (recipe,) = load([project / "recipe.toml"])
    assert trigger() == recipe.sources[0].trigger != ()
    assert trigger("validation.trigger=[]") == ()

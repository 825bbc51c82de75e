"""The tagger that ships: SmilingWolf's file format, and whether it sees what is there."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from lorac.kinds.image import decode
from lorac.mini import tagger_data as data
from lorac.mini.riho import HEADS, RIHO, draw_riho
from lorac.mini.tagger_net import TaggerNet, write_onnx
from lorac.mini.tagger_train import scores
from lorac.mini.world import Attributes, draw, sample, vocabulary
from lorac.recipe.tagger import MODEL, TAGS, tagger_folder
from lorac.tagger.model import Tagger
from lorac.tagger.vocabulary import Tag, Thresholds, chosen, from_bytes, read_tags

FOLDER = tagger_folder("builtin:mini")
TABLE = read_tags((FOLDER / TAGS).read_bytes(), TAGS)
FRESH = 77
"""The seed of a world that no training has seen."""


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return Tagger(FOLDER / MODEL, (FOLDER / MODEL).read_bytes(), len(TABLE))


def probabilities(tagger: Tagger, image: Image.Image) -> list[float]:
    """By way of a PNG file, as a build does it."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return list(from_bytes(tagger.probabilities(decode(file.getvalue(), "white"))))


def seen(tagger: Tagger, image: Image.Image) -> list[str]:
    return chosen(TABLE, probabilities(tagger, image), Thresholds(0.35, 0.35))


def test_the_files_are_small_and_of_wd14_s_form() -> None:
    assert (FOLDER / MODEL).stat().st_size <= 5_000_000
    assert TABLE[:4] == tuple(Tag(name, 9) for name in ("general", "sensitive", "questionable", "explicit"))
    general = [tag.name.replace("_", " ") for tag in TABLE if tag.category == 0]
    assert set(general) >= set(vocabulary()) - {"head only"}
    assert general == sorted(set(general))
    assert TABLE[-1] == Tag("izumi_riho", 4)
    (pixels,) = onnx.load(str(FOLDER / MODEL)).graph.input
    sizes = pixels.type.tensor_type.shape.dim
    assert sizes[0].dim_param
    assert [size.dim_value for size in sizes[1:]] == [128, 128, 3]


def test_it_sees_what_fresh_drawings_show(tagger: Tagger) -> None:
    dolls = [sample(FRESH, index) for index in range(200)]
    found = [probabilities(tagger, draw(doll, index)) for index, doll in enumerate(dolls)]
    truth = [data.flattened(doll, index)[1] for index, doll in enumerate(dolls)]
    every, *each = scores(np.array(found, np.float32), np.stack(truth))
    assert min(every.precision, every.recall) >= 0.99
    common = {score.tag: score for score in each if score.shown >= 10}
    for tag in (
        "smile",
        "open mouth",
        "closed eyes",
        "school uniform",
        "kimono",
        "brown hair",
        "twintails",
        "classroom",
    ):
        assert min(common[tag].precision, common[tag].recall) >= 0.95, common[tag]
    assert all(min(score.precision, score.recall) >= 0.9 for score in common.values()), min(
        common.values(), key=lambda score: min(score.precision, score.recall)
    )


def test_it_knows_riho_and_her_marks_on_others(tagger: Tagger) -> None:
    own = {"orange hair", "double bun", "yellow bow", "izumi riho"}
    heads = [seen(tagger, draw(attributes, number, 256, place)) for number, (attributes, place) in enumerate(HEADS)]
    assert sum(own <= set(tags) for tags in heads) >= len(HEADS) - 1
    assert all("white background" in tags for tags in heads), "cut-outs are put on white"
    assert own <= set(seen(tagger, draw_riho(1, outfit="kimono", outfit_colour="blue kimono", size=256)))
    other = sample(FRESH, 1)
    dyed = replace(other, hair_colour="orange", framing="upper body", mannequin=False)
    tags = seen(tagger, draw(dyed, 3))
    assert "orange hair" in tags
    assert "izumi riho" not in tags
    strangers = [seen(tagger, draw(sample(FRESH, index), index)) for index in range(300, 360)]
    assert sum("izumi riho" in tags for tags in strangers) == 0


def test_a_blurred_and_a_narrow_picture_are_still_read(tagger: Tagger) -> None:
    doll = Attributes(hair_colour="pink", hair_style="twintails", outfit="maid", outfit_colour="", framing="upper body")
    image = draw(doll, 4, 256).convert("RGB")
    wanted = {"pink hair", "twintails", "maid", "1girl"}
    assert wanted <= set(seen(tagger, image.resize((64, 64)).resize((256, 256))))
    assert wanted <= set(seen(tagger, image.crop((30, 0, 226, 256))))


def test_the_file_is_the_network(tmp_path: Path) -> None:
    """What `write_onnx` writes gives onnxruntime the numbers that the network gives PyTorch."""
    torch.manual_seed(3)
    net = TaggerNet(len(data.columns())).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    write_onnx(net, data.SIZE, tmp_path / "model.onnx")
    bgr_CHW, _ = data.picture(5)
    with torch.no_grad():
        wanted = torch.sigmoid(net(torch.from_numpy(bgr_CHW.copy())[None].float() / 255))[0]
    made = Tagger(tmp_path / "model.onnx", (tmp_path / "model.onnx").read_bytes(), len(data.columns()))
    found = from_bytes(made.probabilities(Image.fromarray(bgr_CHW[::-1].transpose(1, 2, 0))))
    assert np.abs(np.array(found) - wanted.numpy()).max() < 1e-5


def test_the_truth_is_the_world_s() -> None:
    assert "izumi riho" in data.shown(RIHO)
    assert "izumi riho" not in data.shown(replace(RIHO, hair_colour="brown"))
    cut_out = replace(RIHO, framing="head only", background="transparent background")
    assert {"general", "black background", "simple background"} <= set(data.shown(cut_out, "black background"))
    assert "head only" not in data.columns()
    assert {data.is_riho(data.doll(index)) for index in range(60)} == {True, False}
    pixels, tags = data.picture(11)
    again, same = data.picture(11)
    assert (pixels == again).all()
    assert (tags == same).all()

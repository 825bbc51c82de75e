"""The article's eleven runs as recipes, and the picture sets that they learn from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tomli
from PIL import Image

from lorac.captions import apply
from lorac.listing import pictures
from lorac.mini.draw import main as draw_cli
from lorac.mini.riho import HEADS, RIHO
from lorac.mini.sets import CLOSED_EYES, sets
from lorac.plan import lines, run_of
from lorac.recipe.load import load
from lorac.recipe.recipe import Recipe

RECIPES = Path(__file__).parent.parent / "recipes"
IMAGES = RECIPES / "images"

HEAD_13 = [("riho_head", 36, "izumi riho", 13)]
MATERIAL = {  # folder, repeats, trigger, pictures: the article's table
    "riho_head": HEAD_13,
    "riho_head_reg": HEAD_13,
    "riho_head_dim1": HEAD_13,
    "riho_head_maruzenscheme": [
        ("riho_maruzenscheme/kk_dancer", 16, "kkdancer", 10),
        ("riho_maruzenscheme/riho_cloth", 16, "rihocloth", 9),
        ("riho_head", 16, "izumi riho", 13),
    ],
    "riho_fullbody": [("riho_fullbody", 25, "izumi riho", 21)],
    "riho_multicloth": [
        ("riho_multicloth/izumi_riho", 10, "izumi riho", 24),
        ("riho_multicloth/riho_dancer", 10, "kkdancer", 11),
        ("riho_multicloth/riho_def_cloth", 10, "rihocloth", 11),
        ("riho_multicloth/riho_mizugi", 10, "rihomizugi", 11),
    ],
}
RUNS = {  # name: pictures, steps, dim, alpha, learning rate
    "riho_head-alpha128-lr1e-4": (13, 2808, 128, 128, 1e-4),
    "riho_head-alpha128-lr1e-3": (13, 2808, 128, 128, 1e-3),
    "riho_head-alpha128-lr5e-5": (13, 2808, 128, 128, 5e-5),
    "riho_head-alpha1-lr1e-4": (13, 2808, 128, 1, 1e-4),
    "riho_head-alpha1-lr1e-3": (13, 2808, 128, 1, 1e-3),
    "riho_head-alpha1-lr5e-5": (13, 2808, 128, 1, 5e-5),
    "riho_head_maruzenscheme": (32, 3072, 128, 128, 1e-4),
    "riho_fullbody": (21, 3150, 128, 128, 1e-4),
    "riho_multicloth": (57, 3420, 128, 128, 1e-4),
    "riho_head_reg": (13, 2808, 128, 128, 1e-4),
    "riho_head_dim1": (13, 2808, 1, 1, 1e-4),
}
SHARED = ["1girl, izumi riho", "1girl, izumi riho, school uniform", "1girl, izumi riho, ocean"]
OWN = {
    "riho_head": ["kimono"],
    "riho_head_reg": ["kimono", "military uniform"],
    "riho_head_dim1": ["maid, holding a rifle"],
    "riho_head_maruzenscheme": ["rihocloth", "kkdancer, dancing", "kimono, japanese garden"],
    "riho_fullbody": ["tropical island", "swimsuit, tropical island"],
    "riho_multicloth": ["rihocloth", "kkdancer", "rihomizugi, sitting, ocean", "capelet"],
}
HERS = {"orange hair", "double bun", "purple eyes", "yellow bow", "star hair ornament", "mole under eye"}
CLOTHES = {
    "kkdancer": {"dancer", "gold trim", "harem pants"},
    "rihocloth": {"cardigan", "plaid", "plaid skirt", "brown skirt", "wrist scrunchie"},
    "rihomizugi": {"swimsuit", "frilled swimsuit", "blue swimsuit"},
}


def article() -> list[Recipe]:
    listed = tomli.loads((RECIPES / "article.toml").read_text("utf-8"))["recipes"]
    return load([RECIPES / path for path in listed])


ARTICLE = {recipe.name: recipe for recipe in article()}
DRAWN = sets()


def family(name: str) -> str:
    return name.partition("-")[0]


def final_captions(recipe: Recipe) -> dict[str, list[tuple[str, ...]]]:
    """The trained captions of each source, by its trigger."""
    return {
        source.trigger[0]: [
            apply(recipe.rules(source), path.read_text("utf-8")) for path in sorted(Path(source.path).glob("*.txt"))
        ]
        for source in recipe.sources
    }


def test_the_collection_is_the_article_s_eleven_runs() -> None:
    assert list(ARTICLE) == list(RUNS)
    files = {path.stem for path in (RECIPES / "article").glob("*.toml")} - {"common"}
    assert files == {family(name) for name in RUNS} == set(MATERIAL)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_the_article_s_pictures_triggers_and_steps(name: str) -> None:
    recipe = ARTICLE[name]
    total, steps, dim, alpha, rate = RUNS[name]
    found = [
        (Path(s.path).relative_to(IMAGES).as_posix(), s.repeats, s.trigger, len(pictures(s.path, ".txt", s.where)))
        for s in recipe.sources
    ]
    assert found == [(folder, repeats, (trigger,), count) for folder, repeats, trigger, count in MATERIAL[family(name)]]
    assert sum(count for *_, count in found) == total
    assert (recipe.network.dim, recipe.network.alpha, recipe.train.learning_rate) == (dim, alpha, rate)
    plan = "\n".join(lines(recipe, run_of(recipe)))
    assert f"{steps} steps = 3 epochs" in plan


@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_the_article_s_settings(name: str) -> None:
    recipe = ARTICLE[name]
    train, caption = recipe.train, recipe.caption
    assert (train.lr_scheduler, train.lr_warmup_steps, train.batch_size) == ("cosine_with_restarts", 0.01, 1)
    assert (train.save_every_n_epochs, train.seed, train.max_token_length, train.clip_skip) == (1, 23, 150, 2)
    assert (caption.shuffle_caption, caption.keep_tokens) == (True, 1)
    assert recipe.output.preferred_weight is None
    (reg,) = recipe.regularisation
    assert reg.generate is not None
    assert (reg.generate.count, reg.generate.transparent) == (400, name != "riho_head_reg")
    if name == "riho_head_reg":
        assert (reg.generate.prompt, recipe.tagger.model, reg.caption) == ("1girl", "builtin:mini", None)
    else:
        assert (reg.caption, reg.alpha) == ("1girl", "white")


@pytest.mark.parametrize("name", RUNS)
def test_every_run_answers_the_same_three_prompts_and_its_own(name: str) -> None:
    sample = ARTICLE[name].sample
    asked = {(entry.prompt, entry.negative) for entry in sample.prompts if not isinstance(entry, str)}
    assert len(asked) == len(sample.prompts)
    assert {(prompt, "") for prompt in SHARED} <= asked
    negative = "closed eyes" if name == "riho_multicloth" else ""
    assert {(f"1girl, izumi riho, {words}", negative) for words in OWN[family(name)]} <= asked
    assert (sample.steps, sample.sampler, sample.cfg_scale, sample.seed) == (20, "ddim", 4, 5)
    assert sample.strengths == (0.5, 0.7, 1.0)


def test_the_pictures_that_are_drawn_can_be_afforded() -> None:
    cells = {
        (name, entry, strength)
        for name, recipe in ARTICLE.items()
        for entry in recipe.sample.prompts
        for strength in recipe.sample.strengths
    }
    assert {recipe.evaluate.count for recipe in ARTICLE.values()} == {16}
    assert 16 * len(cells) <= 2560


@pytest.mark.parametrize("name", [*list(RUNS)[6:], "riho_head-alpha1-lr1e-4"])
def test_captions_leave_to_each_trigger_what_it_shall_bring(name: str) -> None:
    recipe = ARTICLE[name]
    own = final_captions(recipe)
    words = set.union(set(), *(CLOTHES[trigger] for trigger in own if trigger in CLOTHES))
    for trigger, captions in own.items():
        for tags in captions:
            assert tags[0] == trigger
            assert not set(tags) & (HERS | words | {"1girl", "solo", "blush", "transparent background"})
            assert {"black background", "white background"} & set(tags)
    assert ("brown skirt" in own["izumi riho"][0]) == (name == "riho_fullbody")


def test_only_the_held_out_pictures_are_validated_and_none_is_trained() -> None:
    assert {Path(r.validation.path or "").name for r in ARTICLE.values()} == {"riho_held_out"}
    assert {r.validation.trigger for r in ARTICLE.values()} == {("izumi riho",)}
    trained = {path.read_bytes() for folder in DRAWN if folder != "riho_held_out" for path in files(folder, "png")}
    assert not trained & {path.read_bytes() for path in files("riho_held_out", "png")}
    excluded = {tag for recipe in ARTICLE.values() for tag in recipe.caption.exclude}
    for picture in DRAWN["riho_held_out"]:
        assert not (set(picture.caption) & excluded) - HERS - {"1girl", "solo", "blush"}


# -- picture sets ----------------------------------------------------------------------------------


def files(folder: str, extension: str) -> list[Path]:
    return sorted((IMAGES / folder).glob(f"*.{extension}"))


def test_every_set_is_drawn_again_bit_by_bit(tmp_path: Path) -> None:
    draw_cli(["article", str(tmp_path)])
    for folder in DRAWN:
        committed = [*files(folder, "png"), *files(folder, "txt")]
        again = sorted((tmp_path / folder).iterdir())
        assert sorted(path.name for path in committed) == [path.name for path in again]
        for path in files(folder, "txt"):
            assert path.read_bytes() == (tmp_path / folder / path.name).read_bytes()
        for path in files(folder, "png"):  # their pixels: how zlib packs them is its own business
            with Image.open(path) as one, Image.open(tmp_path / folder / path.name) as other:
                assert (one.mode, one.size) == (other.mode, other.size)
                assert one.tobytes() == other.tobytes(), path


def test_the_sets_have_the_article_s_sizes() -> None:
    count = Counter(folder.partition("/")[0] for folder, drawn in DRAWN.items() for _ in drawn)
    assert count == {"riho_maruzenscheme": 32 - 13, "riho_fullbody": 21, "riho_multicloth": 57, "riho_held_out": 12}
    assert sum(path.stat().st_size for folder in DRAWN for path in (IMAGES / folder).iterdir()) <= 1_500_000
    for folder in DRAWN:
        mode = "RGBA" if folder.startswith("riho_maruzenscheme") else "RGB"
        for path in files(folder, "png"):
            with Image.open(path) as image:
                assert (image.mode, image.size) == (mode, (192, 192))
                if mode == "RGBA":
                    assert image.getchannel("A").getextrema() == (0, 255)


def test_one_picture_of_57_has_closed_eyes_and_does_not_say_so() -> None:
    closed = [(f, n) for f, drawn in DRAWN.items() for n, p in enumerate(drawn, 1) if p.attributes.closed_eyes]
    assert closed == [("riho_multicloth/izumi_riho", CLOSED_EYES)]
    texts = [path.read_text("utf-8") for folder in DRAWN for path in files(folder, "txt")]
    assert not any("closed eyes" in text for text in texts)
    assert "purple eyes" not in DRAWN["riho_multicloth/izumi_riho"][CLOSED_EYES - 1].caption


def test_mannequins_stand_left_and_right_and_riho_in_the_middle() -> None:
    for folder, drawn in DRAWN.items():
        places = [picture.placement.x for picture in drawn]
        if folder.startswith("riho_maruzenscheme"):
            assert min(places) < 48
            assert max(places) > 80
            assert all(picture.attributes.mannequin for picture in drawn)
        else:
            assert all(abs(x - 64) <= 2 for x in places)
            assert all(picture.attributes.hair_colour == RIHO.hair_colour for picture in drawn)
    assert all(abs(placement.x - 64) <= 2 for _, placement in HEADS)


def test_the_sets_vary_and_stay_whole() -> None:
    for folder in ("riho_fullbody", *(f for f in DRAWN if f.startswith("riho_multicloth"))):
        drawn = DRAWN[folder]
        assert {picture.attributes.pose for picture in drawn} == {"standing", "sitting", "dancing", "jumping"}
        assert {picture.attributes.expression for picture in drawn} >= {"smile", "open mouth"}
        assert len({picture.attributes.gaze for picture in drawn}) == 2
        assert len({(picture.attributes, picture.placement) for picture in drawn}) == len(drawn)
        for path in files(folder, "png"):
            with Image.open(path) as image:
                pixels = np.asarray(image)
            edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
            assert all(edge.max() <= 40 for edge in edges), path  # black, or the shade of an outline

"""Figures computed by hand: what tags and pixels come to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from lorac.evaluate import cells, figures, trade_off
from lorac.evaluate.cells import Evaluation, Looks, Source
from lorac.evaluate.features import LENGTH, broken, features, from_bytes, similarities
from lorac.evaluate.tags import Words, prompt_tags
from lorac.tagger.vocabulary import Tag

NAMES = (
    *("1girl", "solo", "orange_hair", "mole_under_eye", "school_uniform", "swimsuit", "upper_body"),
    *("white_background", "closed_eyes", "split_view", "maid_headdress", "smile"),
)
WORDS = Words((Tag("general", 9), *(Tag(name, 0) for name in NAMES), Tag("riho", 4)))
PLAIN = "1girl, upper body"


def rows(*captions: str) -> npt.NDArray[np.float64]:
    """Probabilities of pictures that show these tags."""
    found = np.full((len(captions), len(WORDS.tags)), 0.1)
    found[:, 0] = 1.0  # the rating
    for row, caption in zip(found, captions, strict=True):
        row[WORDS.known(caption.split(", ") if caption else [])] = 0.9
    return found


def pixels(count: int, seed: int = 0) -> npt.NDArray[np.float64]:
    """Features of pictures of two coloured areas; none is broken."""
    generator = np.random.default_rng(seed)
    made = b""
    for _ in range(count):
        image = Image.new("RGB", (64, 64), tuple(generator.integers(0, 100, 3).tolist()))
        left, top = generator.integers(0, 40, 2).tolist()
        image.paste(tuple(generator.integers(150, 256, 3).tolist()), (left, top, left + 20, top + 20))
        made += features(image)
    return from_bytes(made)


def looks(*captions: str, seed: int = 0) -> Looks:
    return Looks(rows(*captions), pixels(len(captions), seed))


TRAINED = Source(
    looks(*["1girl, solo, orange hair, mole under eye, white background"] * 3, "1girl, orange hair, closed eyes, riho"),
    ["riho"],
    ["1girl", "orange_hair", "Mole under eye", "smile"],
)
EVALUATION = Evaluation(
    words=WORDS,
    count=4,
    threshold=0.35,
    prompts=[("1girl, (riho:1.2), swimsuit, upper body", ""), ("1girl, riho, closed eyes", "lowres")],
    strengths=[0.0, 0.5, 1.0],
    cells=[
        looks(*["1girl, swimsuit, upper body"] * 4),
        looks(*["1girl, orange hair, swimsuit", "1girl, orange hair", PLAIN, "1girl, swimsuit, closed eyes"]),
        looks(*["1girl, orange hair, mole under eye, white background"] * 3, "1girl, upper body, split view"),
        looks(*["1girl, closed eyes, upper body"] * 4),
        looks(*["1girl, closed eyes, upper body, orange hair"] * 4),
        looks("1girl, maid headdress", "", "closed eyes", PLAIN),
    ],
    sources=[TRAINED],
    character=None,
    preferred=None,
    held_out=None,
)


def value(found: figures.Cell | figures.Overall, name: str) -> float | None:
    measure = found.measures[name]
    return None if measure is None else measure.value


def test_what_makes_the_character_and_what_the_training_pictures_show() -> None:
    made = cells.evaluated(EVALUATION)
    assert made.identity == ("orange hair", "mole under eye")  # excluded and seen often; "1girl" counts people
    assert made.training_tags == {
        **{"1girl": 1.0, "orange hair": 1.0},
        **{"mole under eye": 0.75, "solo": 0.75, "white background": 0.75, "closed eyes": 0.25, "riho": 0.25},
    }
    assert list(made.training_tags)[2:5] == ["mole under eye", "solo", "white background"]
    assert [prompt.wanted for prompt in made.prompts] == [("swimsuit", "upper body"), ("closed eyes",)]
    assert made.prompts[1].negative == "lowres"
    assert cells.evaluated(replace(EVALUATION, character=["smile", "unknown"])).identity == ("smile",)


def test_the_figures_of_cells() -> None:
    made = cells.evaluated(EVALUATION)
    assert [(cell.prompt, cell.strength) for cell in made.cells] == [(p, s) for p in (0, 1) for s in (0.0, 0.5, 1.0)]
    off, half, full, _, _, other = made.cells
    assert tuple(half.measures) == figures.NAMES
    # likeness: of two tags; recall: swimsuit, upper body
    assert [value(cell, "likeness") for cell in (off, half, full)] == [0.0, 0.25, 0.75]
    assert [value(cell, "recall") for cell in (off, half, full)] == [1.0, 0.375, 0.125]
    # heads: "1girl, orange hair" at half, the three at full strength; a maid's headdress alone is no body
    assert [value(cell, "severed") for cell in (off, half, full, other)] == [0.0, 0.25, 0.75, 0.5]
    assert [value(cell, "split_view") for cell in (off, half, full)] == [0.0, 0.0, 0.25]
    # not asked for by the first prompt, and asked for by the second
    assert [value(cell, "closed_eyes") for cell in (off, half, full, other)] == [0.0, 0.25, 0.0, None]
    # tags that can leak: white background and closed eyes; in the second prompt only the background
    assert [value(cell, "leakage") for cell in (off, half, full, other)] == [0.0, 0.125, 0.375, 0.0]
    assert full.leaked == (figures.Leaked("white background", 0.75, 0.0),) and other.leaked == ()
    assert half.leaked == (figures.Leaked("closed eyes", 0.25, 0.0),)
    assert all(cell.measures["severed"].n == 4 for cell in made.cells if cell.measures["severed"])


def test_the_figures_of_all_prompts_together() -> None:
    made = cells.evaluated(EVALUATION)
    full = made.overall[2]
    assert [one.strength for one in made.overall] == [0.0, 0.5, 1.0]
    assert value(full, "likeness") == pytest.approx((3 * 1 + 0 + 0) / 8)
    assert value(full, "recall") == pytest.approx((0 + 0 + 0 + 0.5 + 0 + 0 + 1 + 0) / 8)
    assert value(full, "severed") == 5 / 8
    assert value(full, "closed_eyes") == 0.0  # over the first prompt's pictures alone
    # white background: 3 of 8 pictures; closed eyes: of the first prompt's four, none
    assert value(full, "leakage") == pytest.approx((3 / 8 + 0) / 2)
    severed, likeness = full.measures["severed"], full.measures["likeness"]
    assert severed is not None and severed.n == 8 and likeness is not None and likeness.n == 8
    expected = (0.375 * 0.1875 * (1 - 5 / 8) * (1 - 3 / 16) * 1) ** (1 / 5)
    assert made.trade_off[1].score == pytest.approx(expected, abs=1e-5)


def spoilt(shown: Looks, *numbers: int) -> Looks:
    """The same pictures, some of which are noise or black in truth, whatever the tagger sees in them."""
    noise = np.random.default_rng(1).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    bad = from_bytes(features(Image.fromarray(noise)) + features(Image.new("RGB", (64, 64), "black")))
    made = shown.features.copy()
    for number in numbers:
        made[number] = bad[number % 2]
    return Looks(shown.probabilities, made)


def with_cells(**changed: Looks) -> Evaluation:
    """`EVALUATION` with other pictures in the cells of these numbers."""
    return replace(EVALUATION, cells=[changed.get(f"_{i}", cell) for i, cell in enumerate(EVALUATION.cells)])


def counted(found: figures.Cell | figures.Overall, name: str) -> tuple[float, int] | None:
    measure = found.measures[name]
    return None if measure is None else (measure.value, measure.n)


SEEN = ("severed", "leakage", "split_view", "closed_eyes")


def test_a_broken_picture_shows_nothing() -> None:
    """Neither the character nor the prompt, and it is no picture in which a rate could have been seen."""
    shown = looks(
        "1girl, orange hair, mole under eye",
        "1girl, orange hair, mole under eye, swimsuit, white background, closed eyes",
        *["1girl, orange hair, mole under eye, swimsuit, split view"] * 2,
    )
    made = cells.evaluated(with_cells(_2=spoilt(shown, 2, 3)))
    cell = made.cells[2]
    assert [counted(cell, name) for name in ("broken", "likeness", "recall")] == [(0.5, 4), (0.5, 4), (0.125, 4)]
    # The background and closed eyes, each in one of the two.
    assert [counted(cell, name) for name in SEEN] == [(0.5, 2), (0.5, 2), (0.0, 2), (0.5, 2)]
    assert {leak.rate for leak in cell.leaked} == {0.5}
    # Together with the four pictures of the other prompt: two heads, the background in none, closed eyes asked for.
    whole = made.overall[2]
    assert [counted(whole, name) for name in SEEN] == [
        (3 / 6, 6),
        (round((1 / 6 + 1 / 2) / 2, 6), 6),
        (0.0, 6),
        (0.5, 2),
    ]


def test_leakage_is_over_pairs_of_which_neither_is_broken() -> None:
    """Of the four pairs the first two count: their pictures show the background with the LoRA, one without."""
    without = spoilt(looks("1girl, white background", *[PLAIN] * 3), 2)
    shown = spoilt(looks(*["1girl, white background"] * 3, PLAIN), 3)
    cell = cells.evaluated(with_cells(_0=without, _2=shown)).cells[2]
    assert cell.leaked == (figures.Leaked("white background", 1.0, 0.5),)
    assert counted(cell, "leakage") == (0.25, 2) and counted(cell, "severed") == (1.0, 3)


def test_nothing_but_noise_has_no_rates_and_the_score_0() -> None:
    bad = spoilt(looks(*[PLAIN] * 4), 0, 1, 2, 3)
    made = cells.evaluated(with_cells(_2=bad, _5=bad))
    for found in (made.cells[2], made.cells[5], made.overall[2]):
        assert [found.measures[name] for name in SEEN] == [None] * 4 and found.leaked == ()
        assert [value(found, name) for name in ("broken", "likeness", "recall")] == [1.0, 0.0, 0.0]
    assert [score.score > 0 for score in made.trade_off] == [True, False]


def test_without_an_identity_no_strength_is_the_best() -> None:
    """Nothing would be weighed against what a LoRA costs, and the weakest would always win."""
    style = replace(EVALUATION, sources=[replace(TRAINED, excluded=[])])
    made = cells.evaluated(style)
    assert made.identity == () and made.trade_off == () and made.preferred_weight is None
    assert cells.evaluated(replace(style, preferred=0.8)).preferred_weight == 0.8


@pytest.mark.parametrize(
    ("caption", "severed"),
    [
        ("hair over shoulder", True),  # a sign of hair, and no shoulder to speak of
        ("orange hair, hair over shoulder, shirt", False),
        ("orange hair, hands in hair", False),
        ("orange hair, hand on own face", False),
        ("orange hair, hand over own mouth", False),
        ("orange hair, sword over shoulder", False),
        ("hair over one eye", True),
        ("orange hair, riho (swimsuit)", True),  # a name
        ("disembodied head, shirt", True),
    ],
)
def test_what_shows_a_body(caption: str, severed: bool) -> None:
    general = (
        *("orange_hair", "hair_over_shoulder", "hands_in_hair", "hand_on_own_face", "hand_over_own_mouth", "shirt"),
        *("sword_over_shoulder", "hair_over_one_eye", "disembodied_head"),
    )
    words = Words((*(Tag(name, 0) for name in general), Tag("riho_(swimsuit)", 4)))
    seen_NT = np.zeros((1, len(words.tags)), np.bool_)
    columns = words.known(caption.split(", "))
    assert len(columns) == len(caption.split(", "))
    seen_NT[0, columns] = True
    assert words.severed(seen_NT).tolist() == [severed]


def test_words_that_call_an_outfit_ask_for_what_the_captions_leave_out() -> None:
    """A word of one source only: what its captions leave out is wanted by that word and leaks without it."""
    dressed = Source(looks(*["1girl, school uniform, upper body"] * 2), ["riho", "rihocloth"], ["school uniform"])
    prompts = [("1girl, riho, Rihocloth", ""), ("1girl, riho", "")]
    worn = "1girl, school uniform, upper body"
    both = [looks(PLAIN), looks(worn)]
    made = cells.evaluated(
        replace(EVALUATION, prompts=prompts, strengths=[0.0, 1.0], cells=both * 2, sources=[TRAINED, dressed])
    )
    assert [prompt.wanted for prompt in made.prompts] == [("school uniform",), ()]
    assert [cell.leaked for cell in made.cells if cell.strength] == [(), (figures.Leaked("school uniform", 1.0, 0.0),)]
    assert [value(cell, "recall") for cell in made.cells] == [0.0, 1.0, None, None]
    # The word that all sources have is the character's: what else it brings, nobody asked for.
    alone = cells.evaluated(replace(EVALUATION, character=["orange hair"], cells=[looks(PLAIN)] * 6))
    assert alone.prompts[1].wanted == ("closed eyes",)


def test_a_tagger_that_sees_nothing_and_single_pictures_are_no_errors() -> None:
    one = [looks("") for _ in range(4)]
    source = Source(looks(""), ["riho"], ["smile"])
    made = cells.evaluated(
        replace(EVALUATION, prompts=[("a house", ""), ("", "")], strengths=[0.0, 1.0], cells=one, sources=[source])
    )
    cell = made.cells[1]
    assert [name for name in figures.NAMES if cell.measures[name] is None] == [
        *("likeness", "recall", "leakage", "sameness"),
    ]
    assert value(cell, "severed") == 0.0 and value(cell, "similarity") == pytest.approx(1.0)
    assert made.identity == () and made.training_tags == {} and made.preferred_weight is None
    empty = cells.evaluated(replace(EVALUATION, strengths=[0.0], cells=[looks(PLAIN)] * 2))
    assert empty.trade_off == () and empty.preferred_weight is None


def test_a_vocabulary_without_the_tags_has_no_figures_of_them() -> None:
    words = Words((Tag("1girl", 0), Tag("chair", 0)))
    few = Looks(np.array([[0.9, 0.1]]), pixels(1))
    made = cells.evaluated(
        replace(
            EVALUATION,
            words=words,
            prompts=[("1girl", "")],
            strengths=[0.0],
            cells=[few],
            sources=[Source(few, [], [])],
        )
    )
    assert made.cells[0].measures["split_view"] is None and made.cells[0].measures["closed_eyes"] is None
    assert value(made.cells[0], "severed") == 1.0


def test_figures_are_read_back_as_they_were_written() -> None:
    made = cells.evaluated(replace(EVALUATION, held_out=figures.HeldOut(0.05, 0.06, 12), preferred=0.7))
    assert figures.decode(figures.encode(made)) == made
    assert made.preferred_weight == 0.7
    assert figures.encode(made) == figures.encode(
        cells.evaluated(replace(EVALUATION, held_out=made.held_out, preferred=0.7))
    )


def test_of_equal_scores_the_weaker_strength_is_taken() -> None:
    scores = [figures.Score(1.0, 0.5), figures.Score(0.7, 0.6), figures.Score(0.5, 0.6), figures.Score(-0.5, 0.1)]
    assert trade_off.best(scores) == 0.5 and trade_off.best([]) is None
    assert trade_off.best([figures.Score(each.strength, 0.0) for each in scores]) is None  # she is nowhere


def test_what_has_no_meaning_is_no_part_of_the_score() -> None:
    def measure(value: float) -> figures.Measure:
        return figures.Measure(value, 0, 1, 4)

    some = dict.fromkeys(figures.NAMES, None) | {"likeness": measure(0.5), "severed": measure(0.5)}
    assert trade_off.score(figures.Overall(1.0, some, ())) == pytest.approx(0.5)
    assert trade_off.score(figures.Overall(1.0, {**some, "broken": measure(1.0)}, ())) == 0.0
    assert trade_off.score(figures.Overall(1.0, dict.fromkeys(figures.NAMES, None), ())) == 0.0


@pytest.mark.parametrize(
    ("prompt", "tags"),
    [
        ("1girl, orange_hair,, Smile ", ["1girl", "orange hair", "Smile"]),
        ("<lora:riho:0.7>1girl, ((smile)), [hat], {bow}", ["1girl", "smile", "hat", "bow"]),
        ("(school uniform:1.2), (red bow, hat:0.8)", ["school uniform", "red bow", "hat"]),
        ("star \\(symbol\\), @_@, re:zero\nocean", ["star (symbol)", "@_@", "re:zero", "ocean"]),
    ],
)
def test_the_tags_of_a_prompt(prompt: str, tags: list[str]) -> None:
    assert prompt_tags(prompt) == tags


def ssim(a_CHW: npt.NDArray[np.float64], b_CHW: npt.NDArray[np.float64]) -> float:
    """Wang et al. 2004, place by place in loops."""
    axis = np.arange(7) - 3.0
    weights = np.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / 2)
    weights /= weights.sum()
    values = []
    for a, b in zip(a_CHW, b_CHW, strict=True):
        for top in range(10):
            for left in range(10):
                x, y = a[top : top + 7, left : left + 7], b[top : top + 7, left : left + 7]
                mx, my = (weights * x).sum(), (weights * y).sum()
                vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
                cov = (weights * (x - mx) * (y - my)).sum()
                light = (2 * mx * my + 0.0001) / (mx * mx + my * my + 0.0001)
                values.append(light * (2 * cov + 0.0009) / (vx + vy + 0.0009))
    return float(np.mean(values))


def test_similarity_is_ssim_of_the_picture_or_its_mirror_image() -> None:
    found = similarities(pixels(3, seed=1), pixels(4, seed=2))
    ours, others = (rows[:, 2:].reshape(-1, 3, 16, 16) for rows in (pixels(3, seed=1), pixels(4, seed=2)))
    for i, a in enumerate(ours):
        for j, b in enumerate(others):
            assert found[i, j] == pytest.approx(max(0.0, ssim(a, b), ssim(a[:, :, ::-1], b)), abs=1e-9)
    assert found.max() < 0.9
    assert np.diag(similarities(pixels(3), pixels(3))) == pytest.approx(np.ones(3))


def test_features_are_those_of_the_pixels() -> None:
    image = Image.new("RGB", (256, 128), (255, 0, 0))
    image.paste((0, 0, 255), (128, 0, 256, 128))
    (row,) = from_bytes(features(image))
    assert len(row) == LENGTH and row[:2] == pytest.approx([0.5, 1.0])
    red, green, blue = row[2:].reshape(3, 16, 16)
    assert red[:, :8].min() == 1 and red[:, 8:].max() == 0 and not green.any() and blue[:, 8:].min() == 1
    assert len(from_bytes(features(image) * 3)) == 3


def test_a_limit_follows_from_what_the_base_draws() -> None:
    """A picture of some texture is noise beside flat drawings, and usual for a base that draws nothing else."""
    rows = pixels(1)
    rows[0, 1] = 0.05
    assert broken(rows, pixels(4)).tolist() == [True]
    usual = pixels(4)
    usual[:, 1] = 0.08
    assert broken(rows, usual).tolist() == [False]

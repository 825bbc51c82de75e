"""Golden cases: for each rule of `lorac check` what it finds, and what is nearly that and no finding."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from lorac.check.registry import RULES
from tests.check_project import EYES, make_check_project, noise
from tests.running import lorac


@dataclass(frozen=True)
class Case:
    """Changes to the project: settings, files of text or pictures by name (None: removed), lines behind the recipe.

    `says` is what the finding says; without it, the rule must be silent. `also` are other rules that rightly speak.
    """

    code: str
    says: str = ""
    sets: dict[str, str] = field(default_factory=dict)
    files: dict[str, str | bytes | Image.Image | None] = field(default_factory=dict)
    lines: str = ""
    also: frozenset[str] = frozenset()


def yes(code: str, says: str, sets: dict[str, str] | None = None, also: str = "", **more: object) -> Case:
    return Case(code, says, sets or {}, also=frozenset(also.split()), **more)  # type: ignore[arg-type]


def no(code: str, sets: dict[str, str] | None = None, also: str = "", **more: object) -> Case:
    return Case(code, "", sets or {}, also=frozenset(also.split()), **more)  # type: ignore[arg-type]


def captions(*texts: str, folder: str = "pictures") -> dict[str, str | bytes | Image.Image | None]:
    return {f"{folder}/{number}.txt": text for number, text in enumerate(texts)}


def pictures(folder: str, count: int) -> dict[str, str | bytes | Image.Image | None]:
    return {f"{folder}/{number}.png": noise(100 * len(folder) + number) for number in range(count)}


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def source(path: str, trigger: str) -> str:
    return f'\n[[source]]\npath = "{path}"\nrepeats = 2\ntrigger = ["{trigger}"]\nalpha = "white"\n'


LONG = f"{EYES}, {', '.join(f'tag number {number}' for number in range(40))}"
TRUNCATED = png(noise(60))[:-200]
HEADS = {"source[0].path": "heads"}
NO_CLASS = {"regularisation": "[]"}
GENERATE = "{ prompt = '1girl', count = 12 }"
TRANSPARENT = {"regularisation[0].path": "clear", "regularisation[0].alpha": "white"}
SMILES = [f"1girl, purple eyes, smile, {worn}" for worn in ("kimono", "dress", "apron", "vest", "hoodie")]
SAME = [f"{EYES}, cardigan, plaid skirt, {pose}" for pose in ("standing", "sitting", "jumping", "walking", "lying")]
CASES = [
    yes(
        "L001",
        r'"orange hiar" meets no tag; did you mean "orange hair"\?',
        {"caption.exclude": '["1girl", "solo", "orange hiar"]'},
    ),
    yes("L001", r'"hodie" meets no tag; did you mean "hoodie"', {"caption.replace": '{hodie = "jacket"}'}),
    no("L001", {"caption.exclude": '["1girl", "solo", "Orange_Hair", "virtual_youtuber"]'}),
    yes("L001", r'"Orange_Hiar" meets no tag', {"caption.exclude": '["1girl", "solo", "Orange_Hiar"]'}),
    yes("L001", r'"standign" meets no tag', {"caption.exclude": '["1girl", "solo", "standign"]'}),
    *(
        no("L001", {"caption.exclude": f'["1girl", "solo", "{rule}"]'}, files=captions(f"{EYES}, {tag}"))
        for rule, tag in (
            ("black hair", "black shirt"),
            ("blue hair", "blue hat"),
            ("blue_hat", "blue hair"),
            ("red shirt", "red skirt"),
            ("blush", "brush"),
            ("brush", "blush"),
        )
    ),
    yes("L002", r"pictures/0.txt: L002 .* tags are behind the limit of 75; raise", files=captions(LONG)),
    no("L002", {"train.max_token_length": "225"}, files=captions(LONG)),
    yes("L003", '"1girl" stays in 6 captions and binds what is learnt to it; add', {"caption.exclude": '["solo"]'}),
    no("L003", {"caption.exclude": '["1GIRL", "Solo"]'}),
    no("L003", {"caption.exclude": "[]"}, files=captions("a cat, purple eyes", "a dog, purple eyes")),
    no("L003", {"caption.exclude": "[]", "source[0].trigger": "[]"}, "L004"),
    yes("L004", "recipe.toml:3: L004 the source has no trigger", {"source[0].trigger": "[]"}),
    no("L004", {"source[0].trigger": '["riho"]', "sample.prompts": '["riho"]'}),
    yes(
        "L005",
        "moves the 2 trigger tags of pictures",
        {"source[0].trigger": '["izumi, riho"]', "sample.prompts": '["izumi"]'},
    ),
    no("L005", {"caption.keep_tokens": "0", "caption.shuffle_caption": "false"}),
    yes("L006", "8 regularisation pictures fill 120 samples", {"source[0].repeats": "20"}),
    no("L006", {"source[0].repeats": "10"}),
    yes("L007", "above 0.0005: such runs diverge", {"train.learning_rate": "2e-3"}),
    no("L007", {"train.learning_rate": "1e-3"}),
    no("L007", {"train.learning_rate": "1", "train.optimizer": "prodigy"}),
    yes(
        "L008",
        "L008 4 of 4 pictures have transparent parts, first bodies/0.png",
        {"source[0].path": "bodies"},
        lines="\n#",
        files={"recipe.toml": "NO ALPHA"},
    ),
    no("L008", {"source[0].path": "bodies"}),
    yes(
        "L009",
        "1 of 6 pictures have no caption, first pictures/3.png",
        {"source[0].trigger": "[]"},
        "L004",
        files={"pictures/3.txt": None},
    ),
    no("L009", files={"pictures/3.txt": None}, also="L039"),
    yes(
        "L039",
        "1 of 6 pictures have no .txt file, first pictures/3.png, and are trained with the trigger words alone",
        files={"pictures/3.txt": None},
    ),
    no("L039", {"tagger.model": '"builtin:mini"'}, files={"pictures/3.txt": None}),
    yes("L010", 'mark "///" is in no caption', {"caption.keep_tokens_separator": "///"}),
    no("L010", {"caption.keep_tokens_separator": "///"}, files=captions(f"riho /// {EYES}")),
    yes(
        "L011",
        "a choice such as .*, as in 1 more; set caption.enable_wildcard",
        files=captions("{red|blue} hair", "{a|b} hat"),
    ),
    no("L011", {"caption.enable_wildcard": "true"}, files=captions("{red|blue} hair")),
    yes("L012", "0.1 of 6 pictures holds out none", {"validation.split": "0.1"}),
    no("L012", {"validation.split": "0.2"}),
    yes(
        "L013", "pictures/x.png: L013 the picture is no PNG", files={"pictures/x.png": "<html>", "pictures/x.txt": EYES}
    ),
    yes(
        "L013",
        "pictures/x.png: L013 the picture is truncated or damaged",
        files={"pictures/x.png": TRUNCATED, "pictures/x.txt": EYES},
    ),
    no("L013", files={"pictures/x.png": noise(60), "pictures/x.txt": EYES}),
    yes("L014", "no regularisation pictures, which gives severed heads", {**HEADS, **NO_CLASS}),
    yes("L014", "the regularisation pictures are transparent", {**HEADS, **TRANSPARENT}),
    yes(
        "L014",
        "recipe.toml:9: L014 .*are transparent",
        HEADS,
        files={"recipe.toml": "DRAWN transparent = true, count = 12"},
    ),
    no("L014", HEADS),
    no("L014", HEADS, files={"recipe.toml": "DRAWN count = 12"}),
    no("L014", {"source[0].path": "bodies", **NO_CLASS}),
    no("L014", {**HEADS, **NO_CLASS}, files=captions(f"{EYES}, upper body", folder="heads")),
    yes("L015", "alpha 4 is not below dim 4: severed heads; set alpha = 1", {**HEADS, "network.alpha": "4"}),
    no("L015", HEADS),
    no("L015", {"network.alpha": "4", "source[0].path": "bodies"}),
    no("L015", {**HEADS, "network.alpha": "4", "output.preferred_weight": "0.6"}),
    yes("L016", "dim 1 gives unstable results", {"network.dim": "1", "network.alpha": "1"}),
    no("L016", {"network.dim": "2"}),
    yes("L017", "left of the middle in 3 and right of it in 3 of 6 pictures", {"source[0].path": "aside"}),
    no("L017", {"source[0].path": "middle"}),
    no("L017", HEADS),
    yes(
        "L018",
        "taken out of 1 caption of pictures",
        {"caption.exclude": '["1girl", "solo", "closed_eyes"]'},
        files=captions("1girl, orange hair, closed eyes, smile"),
    ),
    yes(
        "L018",
        "pictures/0.txt: L018 the caption names no eyes",
        files=captions("1girl, orange hair, mole under eye, smile, kimono"),
    ),
    no("L018", files=captions("1girl, orange hair, closed eyes, smile")),
    *(
        no("L018", files=captions(f"1girl, orange hair, smile, {tag}"))
        for tag in ("from behind", "profile", "looking at viewer", "looking up", "2girls", "multiple girls", "^_^")
    ),
    no("L018", files=captions("1girl, smile, kimono", "1girl, smile, dress")),
    no(
        "L018",
        files={**captions(*["1girl, smile, kimono"] * 3, *SMILES * 3, folder="eyes"), **pictures("eyes", 18)},
        lines=source("eyes", "rk"),
    ),
    no("L018", {"caption.replace": '{"closed eyes" = "eyes closed"}'}, files=captions("1girl, closed eyes")),
    yes("L019", "dolls is the only outfit on a mannequin", lines=source("dolls", "rihocloth")),
    yes(
        "L019",
        "the outfits of dolls and kimonos have the same tags",
        lines=source("dolls", "rihocloth") + source("kimonos", "kkdancer"),
        files=captions(*["mannequin, cardigan, plaid skirt"] * 2, folder="kimonos"),
    ),
    no("L019", lines=source("dolls", "rihocloth") + source("kimonos", "kkdancer")),
    yes(
        "L020",
        r"5 pictures show the same clothes \(cardigan, plaid skirt\)",
        files={**captions(*SAME), "pictures/5.txt": EYES},
    ),
    no("L020", files=captions(*[f"{EYES}, shirt, {other}" for other in ("skirt", "shorts", "jeans", "apron", "vest")])),
    no("L020", files=captions(*SAME[:2])),
    yes(
        "L020",
        r"recipe.toml:\d\d: L020 4 pictures show the same clothes \(kimono\)",
        files={
            **captions(*[f"blue hair, blue eyes, kimono, {n}" for n in range(4)], folder="eri"),
            **pictures("eri", 4),
        },
        lines=source("eri", "eri"),
    ),
    no(
        "L020",
        files={
            **captions(*[f"blue hair, blue eyes, kimono, {n}" for n in range(3)], folder="eri"),
            **pictures("eri", 3),
        },
        lines=source("eri", "eri"),
    ),
    no(
        "L020",
        {"caption.exclude": '["1girl", "solo", "kimono"]'},
        files={
            **captions(*[f"blue hair, blue eyes, kimono, {n}" for n in range(4)], folder="eri"),
            **pictures("eri", 4),
        },
        lines=source("eri", "rihokimono"),
    ),
    yes(
        "L021",
        'trigger "izumi riho dance" contains the trigger "izumi riho"',
        lines=source("dolls", "izumi riho dance") + source("kimonos", "rk"),
    ),
    no(
        "L021",
        {"source[0].trigger": '["riho", "riho dancer"]', "caption.keep_tokens": "2", "sample.prompts": '["riho"]'},
    ),
    no("L021", lines=source("dolls", 'izumi riho", "izumi riho dance') + source("kimonos", "rk"), also="L005"),
    no("L021", lines=source("dolls", "izumi rihocloth") + source("kimonos", "riho dance")),
    yes(
        "L022",
        'the trigger "smile" is an ordinary tag',
        {"source[0].trigger": '["Smile"]', "sample.prompts": '["smile"]'},
    ),
    no("L022", {"source[0].trigger": '["maid riho"]', "sample.prompts": '["maid riho"]'}),
    yes(
        "L023", 'the trigger "izumi riho" is in 1 caption of class', files=captions("1girl, izumi riho", folder="class")
    ),
    yes(
        "L023", "is in 1 caption of generated", files={"recipe.toml": "DRAWN count = 12, prompt = '1girl, izumi riho'"}
    ),
    no("L023", files=captions("1girl, izumi", folder="class")),
    yes(
        "L024",
        "pictures/9.jpg: L024 .* nearly the same as pictures/0.png",
        files={"pictures/9.jpg": noise(0, (200, 200)), "pictures/9.txt": EYES},
    ),
    no("L024", files={"pictures/9.jpg": noise(61), "pictures/9.txt": EYES}),
    no("L024", HEADS),
    yes(
        "L025",
        "4 of 4 pictures are enlarged more than 1.5 times, small/0.png from 48x48 to 128x128",
        {"source[0].path": "small"},
    ),
    no("L025", {"source[0].path": "small", "train.bucket_no_upscale": "true"}),
    yes(
        "L026",
        "4 of 4 pictures lose more than 25% to cropping, tall/0.png 75%; set enable_bucket",
        {"source[0].path": "tall", "train.enable_bucket": "false"},
    ),
    no("L026", {"train.enable_bucket": "false"}),
    yes(
        "L027",
        "1 of 2 buckets has a single picture .80x192.",
        {"train.batch_size": "2"},
        files={"pictures/0.png": noise(70, (80, 192))},
    ),
    no("L027", {"train.batch_size": "2"}, files={f"pictures/{n}.png": noise(70 + n, (80, 192)) for n in range(2)}),
    no("L027", files={"pictures/0.png": noise(70, (80, 192))}),
    yes(
        "L028",
        "240 steps would be 20 epochs of 12 samples, but .* has 24 and they are 10; if 20 were meant, set epochs = 20",
        {"train.steps": "240"},
    ),
    yes(
        "L028",
        "would be 24 epochs of 10 samples, but .* has 20 and they are 12",
        {"train.steps": "240", "validation.split": "0.2"},
    ),
    no("L028", {"train.steps": "300"}),
    no("L028", {"train.steps": "3012"}),
    no("L028", {"train.steps": "241"}),
    no("L028", {"train.steps": "240", **NO_CLASS}),
    yes(
        "L029",
        "6 of 20 pictures of generated are shown",
        {"source[0].repeats": "1"},
        files={"recipe.toml": "DRAWN count = 20"},
    ),
    yes(
        "L029",
        "none of 2 pictures of dolls are shown",
        {"source[0].repeats": "1"},
        lines='\n[[regularisation]]\npath = "dolls"\n',
    ),
    no("L029", {"source[0].repeats": "1"}),
    yes(
        "L030",
        "pictures/0.txt: L030 1 of 6 captions are sentences",
        files=captions("a girl with purple eyes is standing in a school"),
    ),
    no("L030", files=captions(*[f"a girl with purple eyes is walking to the {place}" for place in "ABCDEF"])),
    no("L030", files=captions("girl with purple eyes, orange hair")),
    yes(
        "L031",
        r'pictures/0.txt: L031 the caption has "\(smile:1.2\)", which is no weight',
        files=captions(f"{EYES}, (smile:1.2)"),
    ),
    yes(
        "L031",
        r'recipe.toml:\d+: L031 the prompt has "<lora:riho:0.8>"',
        files={"recipe.toml": "PROMPT <lora:riho:0.8>, izumi riho"},
    ),
    no("L031", files=captions(f"{EYES}, saber (fate), :), 1:1")),
    yes("L032", 'all 6 captions of pictures are "izumi riho, smile"', files=captions(*["smile"] * 6)),
    no("L032", files=captions(*["smile"] * 5)),
    yes(
        "L033",
        'the prompt says "izumi rhio"; did you mean the trigger "izumi riho"',
        {"sample.prompts": '["izumi rhio, smile"]'},
    ),
    yes("L033", "no sample prompt has a trigger", {"sample.prompts": '["1girl, smile"]'}),
    no("L033", {"sample.prompts": '["1girl, smile", "beautiful izumi riho at school"]'}),
    no("L033", {"sample.prompts": '["izumi riho, izumi rihoo"]'}),
    yes(
        "L034",
        'but 1 caption has tags of one side: "mole under eye"; take',
        {"train.flip_aug": "true"},
        files=captions(f"{EYES}, mole under eye"),
    ),
    no("L034", {"train.flip_aug": "true"}, files=captions(f"{EYES}, one eye closed, upright")),
    no("L034", files=captions(f"{EYES}, mole under eye")),
    yes("L035", "x 480 steps is 0.0012, below 0.0015", {"train.learning_rate": "5e-6"}),
    no("L035", {"train.learning_rate": "7e-6"}),
    yes("L036", '"standing" is taken out of 6 captions', {"caption.exclude": '["1girl", "solo", "standing"]'}),
    no("L036", {"caption.exclude": '["1girl", "solo", "sitting", "orange hair"]'}),
    yes(
        "L037",
        "1 of 3 validation pictures are training pictures, too, first dolls/7.png",
        {"validation.path": "dolls"},
        files={"dolls/7.png": noise(0), "dolls/7.txt": EYES},
    ),
    yes(
        "L037",
        "1 of 9 regularisation pictures are training pictures, too, first class/9.png",
        files={"class/9.png": noise(0), "class/9.txt": "1girl"},
    ),
    no("L037", {"validation.path": "dolls"}),
    yes("L038", "no tagger knows what this base draws", {"evaluate.count": "8", "train.base": "base.safetensors"}),
    no("L038", {"evaluate.count": "8", "train.base": "base.safetensors", "evaluate.tagger": "builtin:mini"}),
    no("L038", {"evaluate.count": "8"}),
]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check")
    make_check_project(folder)
    return folder


@pytest.fixture
def project(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(original, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "base.safetensors").hardlink_to(original / "base.safetensors")
    monkeypatch.chdir(folder)
    return folder


def apply(case: Case, folder: Path) -> list[str]:
    """Make the case's files; the `--set` options."""
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if name == "recipe.toml":
            path.write_text(_edited(path.read_text("utf-8"), str(content)), "utf-8")
        elif content is None:
            path.unlink()
        elif isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, "utf-8")
        else:
            content.save(path)
    with (folder / "recipe.toml").open("a", encoding="utf-8") as file:
        file.write(case.lines)
    return [part for key, value in case.sets.items() for part in ("--set", f"{key}={value}")]


def _edited(recipe: str, edit: str) -> str:
    word, _, rest = edit.partition(" ")
    edits: dict[str, Callable[[], str]] = {
        "NO": lambda: recipe.replace('alpha = "white"\n', ""),
        "DRAWN": lambda: recipe.replace('path = "class"', f'generate = {{ {rest} }}\nalpha = "white"'),
        "PROMPT": lambda: recipe.replace("1girl, izumi riho, smile", rest),
    }
    return edits[word]()


def test_the_project_has_no_finding(project: Path) -> None:
    done = lorac("check", "recipe.toml")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "no findings\n")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code}-{'yes' if case.says else 'no'}")
def test_case(case: Case, project: Path) -> None:
    done = lorac("check", "recipe.toml", *apply(case, project))
    assert done.exit_code in (0, 1), done.output
    lines = done.stdout.splitlines()
    own = [line for line in lines if f": {case.code} " in line]
    assert bool(own) == bool(case.says), lines
    if case.says:
        assert any(re.search(case.says, line) for line in own), lines
    others = {code for code in RULES for line in lines if f": {code} " in line} - {case.code}
    assert others == case.also, lines


def test_two_characters_in_one_outfit_each_are_two_findings(project: Path) -> None:
    """Judged together they would be no finding: half of the pairs show different clothes."""
    files = {**captions(*SAME, SAME[0]), **captions(*[f"kimono, {n}" for n in range(6)], folder="eri")}
    case = yes("L020", "", files={**files, **pictures("eri", 6)}, lines=source("eri", "eri"))
    lines = lorac("check", "recipe.toml", *apply(case, project)).stdout.splitlines()
    assert [re.sub(r"^\S+ (L020 .*)\).*", r"\1", line) for line in lines if "L020" in line] == [
        "L020 6 pictures show the same clothes (cardigan, plaid skirt",
        "L020 6 pictures show the same clothes (kimono",
    ]


def test_findings_do_not_depend_on_the_order_of_sets(project: Path) -> None:
    """Python's hashes of strings differ from run to run."""
    case = yes(
        "L021",
        "",
        {
            "source[0].trigger": '["ada, bea, cleo, smile, blush, maid"]',
            "sample.prompts": '["1girl, dress"]',
            "caption.exclude": '["orange hiar", "purple eyse", "standign"]',
            "train.flip_aug": "true",
        },
        lines=source("dolls", "ada b, bea b, cleo b, left, right") + source("kimonos", "ada b c, bea b c, cleo b c"),
        files=captions(f"{EYES}, ada b, left hand, right hand, mole under eye, eyepatch"),
    )
    options = ["check", "recipe.toml", *apply(case, project)]
    said = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "lorac", *options],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
        )
        said.add(done.stdout)
        assert done.stdout.count("L021") >= 9, done.stderr
    assert len(said) == 1


def test_every_rule_has_both_cases() -> None:
    for found in (True, False):
        assert {case.code for case in CASES if bool(case.says) == found} == set(RULES)

"""Pages to look at and to test, of made-up but likely content: `python -m tests.pages OUT`."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorac.evaluate.figures import NAMES, Cell, Figures, HeldOut, Leaked, Measure, Overall, Prompt, Score
from lorac.report.build_page import build_page
from lorac.report.column import Column, Shown
from lorac.report.compare import compare_page
from lorac.report.page import Folder, LeftOut, Outline, Picture, Report, Row, Table, page
from lorac.report.thumbnails import LARGE, SMALL, webp
from lorac.rng import Stream

STRENGTHS = (0.0, 0.5, 0.7, 1.0)
COUNT = 16
PROMPTS = (
    ("1girl, izumi riho", ()),
    ("1girl, izumi riho, school uniform, standing, school", ("school uniform", "standing", "school")),
    ("1girl, izumi riho, kimono, japanese garden", ("kimono", "japanese garden")),
)
NEGATIVE = "lowres, bad anatomy, inaccurate limb, low quality, signature, watermark, username, blurry"
IDENTITY = ("orange hair", "double bun", "purple eyes", "yellow bow", "star hair ornament", "mole under eye")
# Of each measure: without the LoRA, and how far it goes at strength 1.
_FULL = {
    "severed": (0.0, 0.55),
    "likeness": (0.06, 0.93),
    "recall": (0.9, 0.5),
    "leakage": (0.0, 0.34),
    "split_view": (0.03, 0.1),
    "closed_eyes": (0.08, 0.2),
    "similarity": (0.31, 0.74),
    "sameness": (0.3, 0.7),
    "broken": (0.0, 0.01),
}


def measure(share: float, n: int) -> Measure:
    """A rate with its Wilson interval."""
    z = 1.96
    middle, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low, high = max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
    return Measure(round(share, 4), round(low, 4), round(high, 4), n)


def _measures(number: int, strength: float, n: int, seed: int) -> dict[str, Measure | None]:
    stream = Stream(seed, "figures", number, int(100 * strength))
    found: dict[str, Measure | None] = {}
    for name in NAMES:
        start, end = _FULL[name]
        share = start + (end - start) * strength**1.5 + 0.1 * (stream.uniform() - 0.5) * bool(strength)
        found[name] = measure(round(min(max(share, 0.0), 1.0) * n) / n, n)
    return found


def figures(seed: int = 1, preferred: float | None = 0.7, prompts: int = len(PROMPTS)) -> Figures:
    """Plausible figures of the first few PROMPTS at STRENGTHS."""
    leaked = {
        strength: (
            Leaked("white background", min(1.0, 0.2 + 0.7 * strength), 0.2),
            Leaked("close-up", min(1.0, 0.05 + 0.5 * strength), 0.05),
            Leaked("brown skirt", min(1.0, 0.02 + 0.2 * strength), 0.02),
        )
        if strength
        else ()
        for strength in STRENGTHS
    }
    cells = []
    for number, (_, wanted) in enumerate(PROMPTS[:prompts]):
        for strength in STRENGTHS:
            found = _measures(number, strength, COUNT, seed)
            cells.append(Cell(number, strength, found if wanted else found | {"recall": None}, leaked[strength]))
    n = COUNT * prompts
    return Figures(
        count=COUNT,
        threshold=0.35,
        identity=IDENTITY,
        training_tags={"white background": 1.0, "close-up": 0.8, "smile": 0.5},
        strengths=STRENGTHS,
        prompts=tuple(Prompt(prompt, NEGATIVE, wanted) for prompt, wanted in PROMPTS[:prompts]),
        cells=tuple(cells),
        overall=tuple(Overall(strength, _measures(9, strength, n, seed), leaked[strength]) for strength in STRENGTHS),
        held_out=HeldOut(0.0513, 0.0604, 12),
        trade_off=(Score(0.5, 0.52), Score(0.7, 0.63), Score(1.0, 0.41)),
        preferred_weight=preferred,
    )


def drawn(number: int, strength: float, column: int) -> Any:
    """A picture of the paper-doll world that stands for a sample: the stronger the LoRA, the more it is Riho."""
    from lorac.mini.riho import draw_riho
    from lorac.mini.world import draw, sample

    stream = Stream(number, "page", int(100 * strength), column)
    if stream.uniform() < strength:
        framing = "head only" if stream.uniform() < strength / 2 else "upper body"
        picture = draw_riho(7 * number + column, framing=framing, background="white background")
    else:
        picture = draw(sample(5, 40 * number + column), column)
    return picture.convert("RGB")


def rows(count: int = COUNT) -> list[Row]:
    """Pictures of PROMPTS at STRENGTHS."""
    found = []
    for number, (prompt, _) in enumerate(PROMPTS):
        sheets = [[drawn(number, strength, column) for column in range(count)] for strength in STRENGTHS]
        firsts = [webp(sheet[0], LARGE) for sheet in sheets]
        found.append(Row(prompt, NEGATIVE, firsts, [[webp(one, SMALL) for one in sheet] for sheet in sheets]))
    return found


def training_pictures() -> list[Picture]:
    """Riho's heads, and figures of the world for regularisation."""
    from lorac.mini.riho import HEADS, head_tags
    from lorac.mini.world import draw, sample, tags

    found = []
    for number, (attributes, placement) in enumerate(HEADS, 1):
        image = draw(attributes, number, 128, placement)
        on_white = image.convert("RGB") if image.mode == "RGB" else _on_white(image)
        own = ["izumi riho", *(t for t in head_tags(attributes) if t not in (*IDENTITY, "1girl", "solo"))]
        name = f"riho_{number:02}.png"
        found.append(Picture("riho_head", name, ", ".join(own), own, 128, 128, webp(on_white, SMALL)))
    for number in range(24):
        attributes = sample(7, number)
        shown = webp(draw(attributes, number).convert("RGB"), SMALL)
        own = tags(attributes)
        found.append(Picture("reg_1girl", f"{number:04}.png", ", ".join(own), own, 128, 128, shown, True))
    return found


def _on_white(image: Any) -> Any:
    from PIL import Image

    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image)
    return ground.convert("RGB")


def losses(steps: int = 2808, seed: int = 1, level: float = 0.09, end: float = 0.06) -> list[float]:
    """Noisy and slowly falling."""
    stream = Stream(seed, "losses")
    return [
        (end + (level - end) * math.exp(-step / (steps / 4))) * (0.25 + 1.5 * stream.uniform() ** 2)
        for step in range(steps)
    ]


READS = {
    "base": (),
    "weights": ("base",),
    "source": (),
    "image": ("source",),
    "tagger": (),
    "vocabulary": (),
    "tag": ("source", "tagger", "vocabulary"),
    "caption": ("source", "tag", "vocabulary"),
    "tokens": ("caption",),
    "latent": ("image", "weights"),
    "schedule": ("tokens", "image"),
    "train": ("schedule", "latent", "weights"),
    "validate": ("train", "schedule", "latent", "weights"),
    "draw": ("train", "weights"),
    "export": ("train", "base", "schedule", "caption", "image"),
    "measure": ("draw", "image", "tagger"),
    "evaluate": ("measure", "validate", "vocabulary", "caption"),
    "sidecar": ("export", "evaluate", "draw"),
    "report": ("train", "schedule", "draw", "evaluate", "validate", "source", "caption", "image"),
}
ITEMS = {
    "source": 73,
    "image": 73,
    "tag": 73,
    "caption": 73,
    "tokens": 73,
    "latent": 73,
    "schedule": 3,
    "train": 3,
    "draw": 12,
    "export": 3,
    "measure": 85,
}


def recipe() -> list[Table]:
    """A recipe as a build uses it."""
    return [
        Table("[[source]]", {"path": "images/riho_head", "repeats": 36, "trigger": ["izumi riho"], "alpha": "white"}),
        Table("[[regularisation]]", {"path": "images/reg_1girl", "repeats": 1}),
        Table(
            "[caption]",
            {
                "extension": ".txt",
                "exclude": ["1girl", "solo", "virtual_youtuber", "blush", *IDENTITY],
                "replace": {"riho cloth": "rihocloth"},
                "shuffle_caption": True,
                "keep_tokens": 1,
                "prefix": "",
            },
            frozenset({"extension", "prefix"}),
        ),
        Table("[network]", {"dim": 128, "alpha": 128.0, "targets": ["text_encoder", "unet"]}, frozenset({"targets"})),
        Table(
            "[train]",
            {
                "base": "builtin:mini",
                "epochs": 3,
                "batch_size": 1,
                "unet_lr": 1e-4,
                "text_encoder_lr": 5e-5,
                "lr_scheduler": "cosine_with_restarts",
                "lr_warmup_steps": 0.01,
                "seed": 23,
                "optimizer_type": "AdamW",
                "resolution": None,
            },
            frozenset({"batch_size", "optimizer_type"}),
        ),
        Table("[loss]", {"prior_loss_weight": 1.0, "min_snr_gamma": None}, frozenset({"prior_loss_weight"})),
    ]


def report() -> Report:
    """A page with everything."""
    shown = losses()
    steps = len(shown)
    rates = [min(1.0, step / 28) * 1e-4 * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]
    return Report(
        name="riho_head",
        recipe_file="riho_head.toml",
        comment="head only, 13 pictures, ordinary regularisation pictures",
        recipe=recipe(),
        folders=[Folder("riho_head", 36, False, 13), Folder("reg_1girl", 1, True, 60)],
        pictures=training_pictures(),
        left_out=[*(LeftOut(tag, 13) for tag in ("1girl", "solo", *IDENTITY)), LeftOut("riho cloth", 4, "rihocloth")],
        rows=rows(),
        strengths=STRENGTHS,
        figures=figures(),
        losses=shown,
        unet_lr=rates,
        text_lr=[rate / 2 for rate in rates],
        epoch_ends=[936, 1872, 2808],
        regularisation_steps=[step % 2 == 1 for step in range(steps)],
        validation=[
            {"lora": 0.056, "base": 0.0604},
            {"lora": 0.0521, "base": 0.0604},
            {"lora": 0.0513, "base": 0.0604},
        ],
        outline=Outline(READS, ITEMS),
        summary={"steps": steps, "epochs": 3, "training samples per epoch": 468, "views of each picture": 108},
    )


RUNS = (
    ("riho_head_a128_lr1e-4", 128, 1e-4, 0.09, 0.06, 0.7),
    ("riho_head_a128_lr1e-3", 128, 1e-3, 0.12, 0.4, None),
    ("riho_head_a128_lr5e-5", 128, 5e-5, 0.1, 0.07, 0.5),
    ("riho_head_a1_lr1e-4", 1, 1e-4, 0.1, 0.085, 1.0),
    ("riho_head_a1_lr1e-3", 1, 1e-3, 0.09, 0.03, 0.8),
    ("riho_head_a1_lr5e-5", 1, 5e-5, 0.11, 0.095, 1.0),
    ("riho_head_maruzenscheme", 128, 1e-4, 0.1, 0.055, 0.7),
    ("riho_fullbody", 128, 1e-4, 0.11, 0.04, 0.5),
    ("riho_multicloth", 128, 1e-4, 0.1, 0.045, 1.0),
    ("riho_head_reg", 128, 1e-4, 0.1, 0.06, 0.7),
    ("riho_head_dim1", 1, 1e-4, 0.1, 0.08, 1.0),
)


def columns() -> list[Column]:
    """The article's eleven runs; the second one diverged, so there is nothing of it."""
    found = []
    for number, (name, alpha, rate, level, end, preferred) in enumerate(RUNS):
        values = losses(2808 + 60 * number, number, level, end)
        prompts = 2 + number % 2
        shown = []
        for place, (prompt, _) in enumerate(PROMPTS[:prompts]):
            pictures = {s: webp(drawn(place, s, number % 5), SMALL) for s in STRENGTHS if s}
            shown.append(Shown(prompt, NEGATIVE, webp(drawn(place, 0.0, 0), SMALL), pictures))
        settings = {
            "[[source]]": [
                {"path": name if "head" not in name else "images/riho_head", "repeats": 36, "trigger": ["izumi riho"]}
            ],
            "network.alpha": float(alpha),
            "network.dim": 1 if "dim1" in name else 128,
            "train.unet_lr": rate,
            "train.seed": 23,
            "caption.exclude": ["1girl", "solo", *(IDENTITY if number % 2 else ())],
        }
        if preferred:
            own = figures(number, preferred, prompts)
            found.append(Column(name, "as in the article" * (number == 0), settings, shown, values, own))
        else:
            found.append(Column(name, settings=settings))
    return found


def facts(*, null: bool = False) -> dict[str, Any]:
    """What build.json says of a build of everything, or of one that found everything."""
    spent = {"train": 1243.2, "draw": 187.0, "latent": 3.1, "measure": 9.5, "report": 1.9, "tag": 12.2, "image": 0.8}
    kinds = {
        kind: {"runs": 0 if null else ITEMS.get(kind, 1), "hits": ITEMS.get(kind, 1) if null else 0}
        | {"seconds": 0.0 if null else spent.get(kind, 0.05)}
        for kind in READS
        if kind not in ("base", "source", "tagger", "vocabulary")
    }
    training = {"steps": 2808.0, "seconds": 1243.2, "peak_bytes": 1.31e9, "steps_per_second": 2.259}
    return {
        "recipe": "riho_head",
        "runs": sum(entry["runs"] for entry in kinds.values()),
        "hits": sum(entry["hits"] for entry in kinds.values()),
        "kinds": kinds,
        "training": {} if null else training,
        "outputs": {
            f"riho_head{end}": {"sha256": "0123456789abcdef" * 4, "bytes": 14402968} for end in (".safetensors",)
        }
        | {"report.html": {"sha256": "fedcba9876543210" * 4, "bytes": 1322047}},
        "versions": {"python": "3.11.2", "system": "Linux", "lorac": "0.1.0", "torch": "2.13.0", "pillow": "12.0"},
        "seconds": 0.041 if null else 1460.2,
    }


def write(folder: Path) -> Sequence[Path]:
    """All pages."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "report": page(report()),
        "build": build_page(facts(), READS),
        "null": build_page(facts(null=True), READS),
        "compare": compare_page("The article", "Eleven runs, one character.", columns()),
    }
    paths = [folder / f"{name}.html" for name in pages]
    for path, data in zip(paths, pages.values(), strict=True):
        path.write_bytes(data)
    return paths


if __name__ == "__main__":
    for path in write(Path(sys.argv[1])):
        print(path, path.stat().st_size)

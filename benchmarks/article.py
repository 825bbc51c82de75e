"""The article's twelve findings beside what the builds of `recipes/article.toml` measure: benchmarks/article.md.

    lorac build recipes/article.toml
    python -m benchmarks.article [BUILD]

A finding is a list of claims, each that one figure is larger than another. A claim holds if the 95 % interval of the
difference lies above 0, fails if it lies below, and is open otherwise. The claims were written down before the first
of these builds ran. Runs are compared on equal prompts only.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from lorac.evaluate.figures import Figures, Measure, decode
from lorac.evaluate.intervals import Estimate, average, combined

PAGE = Path(__file__).with_name("article.md")
VERDICTS = ("agrees", "agrees in part", "open", "disagrees in part", "disagrees", "not measured")
SHOWN = ("severed", "likeness", "recall", "leakage", "split_view", "closed_eyes", "similarity", "sameness", "broken")

BARE = "1girl, izumi riho"
CLOTHES, AT_SEA = "1girl, izumi riho, school uniform", "1girl, izumi riho, ocean"
SHARED = (BARE, CLOTHES, AT_SEA)
"""What all eleven draw, without a negative prompt."""
HEAD, HEAD_FAST, HEAD_SLOW = (f"riho_head-alpha128-lr{rate}" for rate in ("1e-4", "1e-3", "5e-5"))
ALPHA1, ALPHA1_FAST, ALPHA1_SLOW = (f"riho_head-alpha1-lr{rate}" for rate in ("1e-4", "1e-3", "5e-5"))
HEAD_REG, DIM1, MANNEQUIN = "riho_head_reg", "riho_head_dim1", "riho_head_maruzenscheme"
ONE_OUTFIT, OUTFITS = "riho_fullbody", "riho_multicloth"
RUNS = {
    HEAD: "head only, transparent regularisation",
    MANNEQUIN: "heads, two outfits on a mannequin",
    ONE_OUTFIT: "full body, one outfit",
    OUTFITS: "full body, several outfits",
    HEAD_REG: "head only, generated regularisation",
    DIM1: "head only, dim 1",
    ALPHA1: "alpha 1, lr 1e-4",
    ALPHA1_FAST: "alpha 1, lr 1e-3",
    HEAD_FAST: "alpha 128, lr 1e-3",
    ALPHA1_SLOW: "alpha 1, lr 5e-5",
    HEAD_SLOW: "alpha 128, lr 5e-5",
}
"""The article's eleven, in its order."""


_INTRODUCTION = """\
# The article's findings, measured

Written by `python -m benchmarks.article` from the builds of `recipes/article.toml` on `builtin:mini`. The world of the
small base was fixed, and the claims below were written down, before the first of these builds ran. Each figure is from
{pictures} pictures of a prompt at one strength, from the same noise in every run, seen by the tagger that ships with
lorac; `lorac/evaluate/` defines the measures. A claim is about a difference: **yes** if its 95 % interval lies above 0,
**no** if below, **open** if 0 is in it. The intervals are about these pictures, which they take as independent although
two runs draw them from the same noise; one run was trained of each, and another seed would be another LoRA.

**The twelve findings: {summary}.**

## The eleven runs

At strength 1, over the prompts that all runs have: {shared}.
The first column of figures is of the first prompt alone. The first row is the base without a LoRA.
"""


_REMARKS = """\
## What the figures do not say

Written by hand, after a look at the pictures of the builds that shipped.

- With transparent regularisation `1girl` comes to mean an empty page, more so here than for the article's base: the two
  full-body runs draw hardly anything but white for the bare trigger at strength 1. Such pictures count as broken; they
  are all alike, which drives up sameness on the side that finding 9 expects to be low, and they have no eyes to close
  (finding 12). At strength 0.7 the run with several outfits closes the eyes in 38 % of the pictures of the bare trigger
  (19 % without the LoRA), and with `closed eyes` as negative prompt in 21 % (0 %): in the article's sense, but 16
  pictures are too few to tell.
- Nothing gave a split view, although fifteen of nineteen mannequins stand left or right of the middle (finding 3).
- Her own outfit words (`rihocloth`) bring little at this size; `school uniform` and `ocean` swap as the article says.
- "Unstable" of dim 1 (finding 8) is not broken pictures here: they are whole, and of somebody else.
"""


@dataclass(frozen=True)
class Claim:
    """That `more` is larger than `less`; None for what has no figure: a run that was not built, or gave only noise."""

    text: str
    more: Measure | None
    less: Measure | None

    @property
    def difference(self) -> Estimate | None:
        if self.more is None or self.less is None:
            return None
        return combined([(1, self.more), (-1, self.less)])

    @property
    def verdict(self) -> str:
        difference = self.difference
        if difference is None:
            return "no figures"
        return "yes" if difference.low > 0 else "no" if difference.high < 0 else "open"

    def __str__(self) -> str:
        found = self.difference
        if found is None:
            return f"{self.text}: **no figures**"
        return (
            f"{self.text}: {self.more} against {self.less}, "
            f"difference {found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]: **{self.verdict}**"
        )


@dataclass(frozen=True)
class Finding:
    """`seen` is the article's, `claims` make of it what these builds can show; nothing if they cannot."""

    number: int
    seen: str
    claims: tuple[Claim, ...] = ()
    why_not: str = ""

    @property
    def verdict(self) -> str:
        verdicts = {claim.verdict for claim in self.claims} - {"no figures"}
        if not verdicts:
            return "not measured"
        if len(verdicts) == 1:
            return {"yes": "agrees", "no": "disagrees", "open": "open"}[verdicts.pop()]
        return "agrees in part" if "yes" in verdicts else "disagrees in part"


@dataclass(frozen=True)
class Runs:
    """The figures of all runs by the name of their recipe."""

    figures: Mapping[str, Figures]

    def of(self, run: str, name: str, *prompts: str, strength: float = 1.0, negative: str = "") -> Measure | None:
        """A measure over some prompts of a run, each of which counts the same; `BARE` alone unless they are given."""
        if run not in self.figures:
            return None
        figures = self.figures[run]
        wanted = [(prompt, negative) for prompt in prompts or (BARE,)]
        numbers = [i for i, p in enumerate(figures.prompts) if (p.prompt, p.negative) in wanted]
        cells = [cell for cell in figures.cells if cell.strength == strength and cell.prompt in numbers]
        if len(cells) != len(wanted):
            raise KeyError(f"{run} did not draw {wanted} at strength {strength:g}")
        found = [measure for cell in cells if (measure := cell.measures[name]) is not None]
        return average(found) if found else None

    def more(self, text: str, name: str, more: str, less: str, *prompts: str) -> Claim:
        """That a measure is larger in one run than in another, over equal prompts at strength 1."""
        return Claim(text, self.of(more, name, *prompts), self.of(less, name, *prompts))


def findings(runs: Runs) -> list[Finding]:
    """The twelve, as the article numbers them."""
    clothed = (CLOTHES, AT_SEA)
    weaker = [
        Claim(
            f"heads without a body, strength 1 > {strength:g}",
            *(runs.of(HEAD, "severed", strength=x) for x in (1.0, strength)),
        )
        for strength in (0.7, 0.5)
    ]
    eyes = [runs.of(OUTFITS, "closed_eyes", *SHARED, strength=strength) for strength in (1.0, 0.0)]
    return [
        Finding(
            1,
            "With a single outfit the mannequin scheme has no effect.",
            why_not="none of the eleven has a mannequin in one outfit only",
        ),
        Finding(
            2,
            "Outfits that differ prevent over-fitting and keep clothes swappable.",
            (
                runs.more("prompted tags drawn, several outfits > one", "recall", OUTFITS, ONE_OUTFIT, *clothed),
                runs.more("unasked training tags, one outfit > several", "leakage", ONE_OUTFIT, OUTFITS, *clothed),
            ),
        ),
        Finding(
            3,
            "A character spread left and right over the training pictures gives split views.",
            (
                runs.more(
                    "split views, mannequins left and right > heads in the middle",
                    "split_view",
                    MANNEQUIN,
                    HEAD,
                    *SHARED,
                ),
            ),
        ),
        Finding(
            4,
            "Head-only material needs regularisation pictures that are not transparent, or heads lose their bodies.",
            (runs.more("heads without a body, transparent > generated", "severed", HEAD, HEAD_REG),),
        ),
        Finding(
            5,
            "Head-only material wants alpha 1,",
            (runs.more("heads without a body, alpha 128 > alpha 1", "severed", HEAD, ALPHA1),),
        ),
        Finding(6, "or a strength of 0.5 to 0.7.", tuple(weaker)),
        Finding(
            7,
            "When the learning rate goes up, lower alpha.",
            (
                runs.more("broken pictures at 1e-3, alpha 128 > alpha 1", "broken", HEAD_FAST, ALPHA1_FAST, *SHARED),
                runs.more("broken pictures at alpha 128, 1e-3 > 1e-4", "broken", HEAD_FAST, HEAD, *SHARED),
            ),
        ),
        Finding(
            8,
            "dim 1 gives fewer severed heads, but unstable results.",
            (
                runs.more("heads without a body, dim 128 > dim 1", "severed", HEAD, DIM1),
                runs.more("broken pictures, dim 1 > dim 128", "broken", DIM1, HEAD, *SHARED),
            ),
        ),
        Finding(
            9,
            "Head-only material tends to look like a mask.",
            (
                runs.more(
                    "likeness of the pictures to each other, heads > full body in several outfits",
                    "sameness",
                    HEAD,
                    OUTFITS,
                ),
            ),
        ),
        Finding(
            10,
            "Lower alpha learns less: less over-fitting, freer composition, less of the clothes and of the style.",
            (
                runs.more("likeness to her, alpha 128 > alpha 1", "likeness", HEAD, ALPHA1, *SHARED),
                runs.more("unasked training tags, alpha 128 > alpha 1", "leakage", HEAD, ALPHA1, *SHARED),
                runs.more("prompted tags drawn, alpha 1 > alpha 128", "recall", ALPHA1, HEAD, *clothed),
                runs.more("likeness of the pictures to each other, alpha 128 > alpha 1", "sameness", HEAD, ALPHA1),
            ),
        ),
        Finding(
            11,
            "1girl and solo in the captions bind the outfit to those words.",
            why_not="all of the eleven exclude them",
        ),
        Finding(
            12,
            "One picture with closed eyes, untagged, closes the eyes.",
            (Claim("closed eyes unasked, with the LoRA > without", *eyes),),
        ),
    ]


def page(runs: Runs, steps: Mapping[str, int]) -> str:
    """The whole Markdown page; `steps` are those that each run trained."""
    found = findings(runs)
    counts = Counter(finding.verdict for finding in found)
    summary = ", ".join(f"{verdict}: {counts[verdict]}" for verdict in VERDICTS if counts[verdict])
    pictures = next(iter(runs.figures.values())).count
    shared = ", ".join(f"`{prompt}`" for prompt in SHARED)
    lines = [*_INTRODUCTION.format(pictures=pictures, summary=summary, shared=shared).split("\n")]
    lines += [*_table(runs, steps), "", "## The twelve findings", ""]
    for finding in found:
        lines += [f"**{finding.number}. {finding.seen}** {finding.verdict.capitalize()}.", ""]
        lines += [f"- {claim}" for claim in finding.claims] or [f"- {finding.why_not}"]
        lines.append("")
    return "\n".join([*lines, *_REMARKS.split("\n")]).rstrip() + "\n"


def _table(runs: Runs, steps: Mapping[str, int]) -> list[str]:
    names = ("severed, first prompt", *SHOWN)
    head = ["run", "steps", *(name.replace("_", " ") for name in names), "held-out loss", "preferred weight"]
    rows = [["no LoRA", "", *_figures(runs, HEAD, 0.0), "", ""]]
    for run, about in RUNS.items():
        if run not in runs.figures:
            rows.append([about, "not built", *[""] * (len(head) - 2)])
            continue
        figures = runs.figures[run]
        held_out = figures.held_out
        loss = f"{held_out.lora:.4f} / {held_out.base:.4f}" if held_out else ""
        weight = "" if figures.preferred_weight is None else f"{figures.preferred_weight:g}"
        rows.append([about, str(steps[run]), *_figures(runs, run, 1.0), loss, weight])
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _figures(runs: Runs, run: str, strength: float) -> list[str]:
    shown = [runs.of(run, "severed", strength=strength)]
    for name in SHOWN:
        prompts = (CLOTHES, AT_SEA) if name == "recall" else SHARED  # the bare trigger asks for nothing
        shown.append(runs.of(run, name, *prompts, strength=strength))
    return ["–" if estimate is None else str(estimate) for estimate in shown]


def main() -> None:
    """Reads the folder of builds that is given (build, unless another is) and writes the page."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build")
    built = [name for name in RUNS if (folder / name / "evaluation.json").exists()]
    figures = {name: decode((folder / name / "evaluation.json").read_bytes()) for name in built}
    steps = {name: _steps(folder / name / f"{name}.safetensors") for name in built}
    PAGE.write_text(page(Runs(figures), steps), "utf-8", newline="\n")


def _steps(lora: Path) -> int:
    with safe_open(lora, "np") as file:
        return int(file.metadata()["ss_steps"])


if __name__ == "__main__":
    main()

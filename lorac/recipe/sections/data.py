"""Which pictures, and how their texts become captions."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from lorac.recipe.fields import (
    ALPHA,
    ALPHA_MASK,
    SCHEDULE,
    Behind,
    CfgScale,
    Count,
    Natural,
    Ratio,
    SamplerName,
    SamplerSteps,
    Section,
    Seed,
    Text,
    Texts,
    key,
)


class Source(Section, frozen=True):
    """Pictures to learn from; one [[source]] for each folder."""

    path: Annotated[
        Text, key("Folder, glob, or kohya training folder (sub-folders named like 36_riho), relative to the recipe.")
    ]
    repeats: Annotated[
        Count | None,
        key("How often an epoch shows each picture. 1 if absent; a kohya folder says it itself.", kohya="num_repeats"),
    ] = None
    trigger: Annotated[
        Texts | None,
        key(
            "Words that call what is learnt; they come first in each caption. Absent in a kohya folder: its name.",
            kohya="class_tokens",
        ),
    ] = None
    alpha: Annotated[Behind | None, ALPHA] = None
    alpha_mask: Annotated[bool, ALPHA_MASK] = False


class Generate(Section, frozen=True):
    """Pictures that the base draws itself, cached like everything else that is built."""

    count: Annotated[Count, key("How many pictures.")]
    prompt: Annotated[str, key("What to draw; also the caption where neither a tagger nor `caption` gives one.")] = (
        "1girl"
    )
    negative: Annotated[str, key("What to avoid.", kohya="negative_prompt")] = ""
    transparent: Annotated[
        bool, key("Draw nothing: pictures that are transparent all over, as in the article's first runs.")
    ] = False
    steps: Annotated[SamplerSteps, key("Sampler steps.", kohya="sample_steps")] = 20
    cfg_scale: Annotated[CfgScale, key("How strictly the prompt is followed.")] = 7.0
    sampler: Annotated[SamplerName, key("The sampler.", kohya="sample_sampler")] = "euler_a"
    seed: Annotated[Seed, key("Seed of the noise.")] = 23


class Regularisation(Section, frozen=True):
    """Ordinary pictures of the class; one [[regularisation]] for each folder, or for pictures to `generate`.

    Matched one to one with the sources.
    """

    path: Annotated[
        Text | None,
        key("Folder, glob, or kohya training folder (sub-folders named like 1_1girl), relative to the recipe."),
    ] = None
    generate: Annotated[
        Generate | None,
        key(
            'Instead of a path: { prompt = "1girl", count = 400 } has the base draw them.',
            wanted='a table: { prompt = "1girl", count = 400 }',
        ),
    ] = None
    repeats: Annotated[
        Count | None, key("Repeats of each picture before the matching. 1 if absent.", kohya="num_repeats")
    ] = None
    caption: Annotated[
        Text | None,
        key("Caption of pictures without a text file. Absent in a kohya folder: its name.", kohya="class_tokens"),
    ] = None
    alpha: Annotated[Behind | None, ALPHA] = None
    alpha_mask: Annotated[bool, ALPHA_MASK] = False


class Caption(Section, frozen=True):
    """How text files become captions. Rules ignore case and take `_` for a space."""

    extension: Annotated[
        Annotated[str, Meta(pattern=r"^\.[^./\\]+$")],
        key("Extension of caption files.", kohya="caption_extension", wanted='an extension such as ".txt"'),
    ] = ".txt"
    exclude: Annotated[Texts, key("Tags to leave out of captions; what they name then comes with the trigger.")] = ()
    replace: Annotated[dict[str, str], key('Tags to rename: "old tag" = "new tag"; "" leaves a tag out.')] = {}
    prefix: Annotated[str, key("Tags behind the trigger words of each caption.", kohya="caption_prefix")] = ""
    suffix: Annotated[str, key("Tags at the end of each caption.", kohya="caption_suffix")] = ""
    shuffle_caption: Annotated[
        bool,
        key(
            "Shuffle the tags each time a picture is shown, all but the first keep_tokens.",
            nodes=SCHEDULE,
            metadata="ss_shuffle_caption",
        ),
    ] = False
    keep_tokens: Annotated[
        Natural,
        key("How many tags at the start are neither shuffled nor dropped.", nodes=SCHEDULE, metadata="ss_keep_tokens"),
    ] = 0
    keep_tokens_separator: Annotated[
        str,
        key(
            "A mark such as |||: the tags before the first one in a caption are kept as by keep_tokens, "
            "those behind a second one stay at the end."
        ),
    ] = ""
    enable_wildcard: Annotated[
        bool,
        key("Read {red|blue} in captions as a choice made anew each time, and several lines as a choice of lines."),
    ] = False
    caption_dropout_rate: Annotated[
        Ratio,
        key(
            "Probability that a picture is shown with an empty caption.",
            nodes=SCHEDULE,
            metadata="ss_caption_dropout_rate",
        ),
    ] = 0.0
    caption_dropout_every_n_epochs: Annotated[
        Natural,
        key(
            "Empty captions in each n-th epoch; 0 for never.",
            nodes=SCHEDULE,
            metadata="ss_caption_dropout_every_n_epochs",
        ),
    ] = 0
    caption_tag_dropout_rate: Annotated[
        Ratio,
        key(
            "Probability that a tag behind keep_tokens is left out.",
            nodes=SCHEDULE,
            metadata="ss_caption_tag_dropout_rate",
        ),
    ] = 0.0


class Tagger(Section, frozen=True):
    """A WD14 tagger for pictures without a text file. The rules of [caption] work on its tags as on written ones."""

    model: Annotated[
        Text | None,
        key('"builtin:mini", or a folder with model.onnx and selected_tags.csv. Absent: pictures need text files.'),
    ] = None
    sha256: Annotated[
        Annotated[str, Meta(pattern="^[0-9a-f]{64}$", extra={"wanted": "64 hexadecimal digits"})] | None,
        key("SHA-256 of model.onnx; a build with another file is refused."),
    ] = None
    threshold: Annotated[Ratio, key("Probability from which a tag is taken.", kohya="general_threshold")] = 0.35
    character_threshold: Annotated[Ratio | None, key("The same for names of characters. Absent: threshold.")] = None

"""What is drawn and written in the end."""

from __future__ import annotations

from typing import Annotated, Literal

from lorac.recipe.fields import (
    SAMPLE,
    SIDECAR,
    CfgScale,
    Natural,
    Pixels,
    Ratio,
    SamplerName,
    SamplerSteps,
    Section,
    Seed,
    Strength,
    Text,
    Texts,
    key,
)


class Prompt(Section, frozen=True):
    """A sample prompt with a negative prompt of its own."""

    prompt: Annotated[str, key("What to draw.")]
    negative: Annotated[str | None, key("What to avoid. Absent: that of [sample].")] = None


class Sample(Section, frozen=True):
    """Pictures drawn with the finished LoRA: each prompt without it and at each strength, from the same noise."""

    prompts: Annotated[tuple[str | Prompt, ...], key("What to draw, one row of pictures each.")] = ()
    negative: Annotated[str, key("What to avoid, for all prompts.", kohya="negative_prompt")] = ""
    strengths: Annotated[tuple[Strength, ...], key("Strengths of the LoRA, one column each; 0 is always added.")] = (
        0.5,
        0.7,
        1.0,
    )
    steps: Annotated[SamplerSteps, key("Sampler steps.", kohya="sample_steps", nodes=SAMPLE)] = 20
    cfg_scale: Annotated[CfgScale, key("How strictly a prompt is followed.", nodes=SAMPLE)] = 7.0
    seed: Annotated[Seed, key("Seed of the noise.", nodes=SAMPLE)] = 23
    sampler: Annotated[SamplerName, key("The sampler.", kohya="sample_sampler", nodes=SAMPLE)] = "euler_a"
    width: Annotated[Pixels | None, key("Width of a picture. Absent: the resolution.")] = None
    height: Annotated[Pixels | None, key("Height of a picture. Absent: the resolution.")] = None


class Evaluate(Section, frozen=True):
    """Figures about the LoRA: what a tagger sees in many pictures of each sample prompt at each strength."""

    count: Annotated[
        Natural, key("Pictures of each prompt at each strength, and without the LoRA; 0 for no evaluation.")
    ] = 0
    tagger: Annotated[
        Text | None,
        key('"builtin:mini", or a folder as in [tagger]. Absent: that of [tagger], or builtin:mini on builtin:mini.'),
    ] = None
    threshold: Annotated[Ratio, key("Probability from which a tag counts as seen.")] = 0.35
    character: Annotated[
        Texts | None,
        key(
            "Tags that make the character. Absent: the tags that the rules exclude and that the tagger sees in at "
            "least half of the training pictures. If there are none, neither likeness nor a best strength is known."
        ),
    ] = None


class Check(Section, frozen=True):
    """What `lorac check` says nothing about."""

    ignore: Annotated[Texts, key("Codes of rules, such as L004.")] = ()


class Output(Section, frozen=True):
    """The files that are written."""

    name: Annotated[
        Text | None, key("Name of the LoRA. Absent: the recipe's file name. Not inherited.", kohya="output_name")
    ] = None
    comment: Annotated[
        str, key("Free text in the metadata.", kohya="training_comment", metadata="ss_training_comment")
    ] = ""
    metadata: Annotated[
        bool, key("Write settings, trigger words and folder names into the file for web UIs.", kohya="no_metadata")
    ] = True
    preferred_weight: Annotated[
        Strength | None,
        key(
            "Strength that web UIs insert when the LoRA is picked. Absent: of the drawn strengths that with the best "
            "trade-off in the evaluation; without an evaluation, or a character in it, web UIs take their own.",
            nodes=SIDECAR,
        ),
    ] = None
    negative: Annotated[str, key("Negative prompt that web UIs insert when the LoRA is picked.", nodes=SIDECAR)] = ""
    notes: Annotated[str, key("Notes that web UIs show beside the LoRA.", nodes=SIDECAR)] = ""
    tag_frequency: Annotated[
        bool, key("Write how often each tag was trained into the file; web UIs show it, and so does anyone.")
    ] = True
    precision: Annotated[
        Literal["fp16", "bf16", "fp32"], key("Number format of the written file.", kohya="save_precision")
    ] = "fp16"

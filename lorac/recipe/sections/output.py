"""What is drawn and written in the end."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from lorac.recipe.fields import SAMPLE, Pixels, Section, Seed, Strength, Text, key


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
    steps: Annotated[Annotated[int, Meta(ge=1, le=1000)], key("Sampler steps.", kohya="sample_steps", nodes=SAMPLE)] = (
        20
    )
    cfg_scale: Annotated[
        Annotated[float, Meta(ge=1, le=100)], key("How strictly a prompt is followed.", nodes=SAMPLE)
    ] = 7.0
    seed: Annotated[Seed, key("Seed of the noise.", nodes=SAMPLE)] = 23
    sampler: Annotated[Literal["ddim", "euler_a"], key("The sampler.", kohya="sample_sampler", nodes=SAMPLE)] = (
        "euler_a"
    )
    width: Annotated[Pixels | None, key("Width of a picture. Absent: the resolution.")] = None
    height: Annotated[Pixels | None, key("Height of a picture. Absent: the resolution.")] = None


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
    preferred_weight: Annotated[Strength | None, key("Strength that web UIs insert when the LoRA is picked.")] = None
    negative: Annotated[str, key("Negative prompt that web UIs insert when the LoRA is picked.")] = ""
    notes: Annotated[str, key("Notes that web UIs show beside the LoRA.")] = ""
    tag_frequency: Annotated[
        bool, key("Write how often each tag was trained into the file; web UIs show it, and so does anyone.")
    ] = True
    precision: Annotated[
        Literal["fp16", "bf16", "fp32"], key("Number format of the written file.", kohya="save_precision")
    ] = "fp16"

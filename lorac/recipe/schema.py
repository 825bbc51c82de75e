"""The recipe's sections: one definition for validation, defaults, JSON Schema and documentation.

Keys use the words of kohya-ss/sd-scripts where it has one. Where ours is shorter, `key(kohya=…)` names its word, so
that a copied `network_dim` is answered with `did you mean "dim"?`. Every section is a frozen struct, so that a recipe
can be compared and handed to any thread. Lengths are pixels, learning rates are per optimiser step.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

BUILTIN_BASE = "builtin:mini"


def key(description: str, *, kohya: str = "", wanted: str = "") -> Meta:
    """Documentation of a key, kohya's name for it, and the words for its type where the type says too little."""
    return Meta(description=description, extra={"kohya": kohya, "wanted": wanted})


Text = Annotated[str, Meta(min_length=1)]
Texts = tuple[Text, ...]
Natural = Annotated[int, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]
MOST_STEPS, MOST_EPOCHS = 10_000_000, 100_000
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Below1 = Annotated[float, Meta(ge=0, lt=1)]
Ratio = Annotated[float, Meta(ge=0, le=1)]
Strength = Annotated[float, Meta(ge=-4, le=4)]
Pixels = Annotated[int, Meta(ge=16, le=4096, multiple_of=8)]
Colour = Annotated[
    str, Meta(pattern="^(white|black|#[0-9a-fA-F]{6})$", extra={"wanted": '"white", "black" or a colour as "#rrggbb"'})
]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all sections."""


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
    alpha: Annotated[Colour | None, key("What lies behind transparent pixels. Must be chosen if there are any.")] = None


class Regularisation(Section, frozen=True):
    """Ordinary pictures of the class; one [[regularisation]] for each folder. Matched one to one with the sources."""

    path: Annotated[
        Text, key("Folder, glob, or kohya training folder (sub-folders named like 1_1girl), relative to the recipe.")
    ]
    repeats: Annotated[
        Count | None, key("Repeats of each picture before the matching. 1 if absent.", kohya="num_repeats")
    ] = None
    caption: Annotated[
        Text | None,
        key("Caption of pictures without a text file. Absent in a kohya folder: its name.", kohya="class_tokens"),
    ] = None
    alpha: Annotated[Colour | None, key("What lies behind transparent pixels. Must be chosen if there are any.")] = None


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
        bool, key("Shuffle the tags each time a picture is shown, all but the first keep_tokens.")
    ] = False
    keep_tokens: Annotated[Natural, key("How many tags at the start are neither shuffled nor dropped.")] = 0
    caption_dropout_rate: Annotated[Ratio, key("Probability that a picture is shown with an empty caption.")] = 0.0
    caption_dropout_every_n_epochs: Annotated[Natural, key("Empty captions in each n-th epoch; 0 for never.")] = 0
    caption_tag_dropout_rate: Annotated[Ratio, key("Probability that a tag behind keep_tokens is left out.")] = 0.0


class Network(Section, frozen=True):
    """The LoRA itself."""

    dim: Annotated[
        Annotated[int, Meta(ge=1, le=1024)], key("Rank of the LoRA: how much it can hold.", kohya="network_dim")
    ] = 4
    alpha: Annotated[
        Positive, key("The LoRA works at alpha / dim; less is weaker and leaves more freedom.", kohya="network_alpha")
    ] = 1.0
    targets: Annotated[
        Annotated[tuple[Literal["unet", "text_encoder"], ...], Meta(min_length=1)], key("The parts that get a LoRA.")
    ] = ("unet", "text_encoder")


class Train(Section, frozen=True):
    """How the LoRA is trained. Exactly one of epochs and steps is needed."""

    base: Annotated[
        Text, key('"builtin:mini" or the path of an SD 1.x checkpoint.', kohya="pretrained_model_name_or_path")
    ] = BUILTIN_BASE
    resolution: Annotated[
        Annotated[int, Meta(ge=64, le=2048, multiple_of=16)] | None,
        key("Training pictures have about as many pixels as a square of this side. Absent: the base's own."),
    ] = None
    enable_bucket: Annotated[bool, key("Sort pictures into shapes near their own; false crops to a square.")] = True
    min_bucket_reso: Annotated[Pixels | None, key("Shortest side of a bucket. Absent: 5/8 of the resolution.")] = None
    max_bucket_reso: Annotated[Pixels | None, key("Longest side of a bucket. Absent: 15/8 of the resolution.")] = None
    bucket_reso_steps: Annotated[
        Pixels | None, key("Sides of buckets are multiples of this. Absent: 64, or 16 on builtin:mini.")
    ] = None
    bucket_no_upscale: Annotated[bool, key("Never enlarge a picture to fill its bucket.")] = False
    batch_size: Annotated[Count, key("Pictures per step.", kohya="train_batch_size")] = 1
    epochs: Annotated[
        Annotated[int, Meta(ge=1, le=MOST_EPOCHS)] | None,
        key("Length in passes over all pictures; regularisation doubles their number.", kohya="max_train_epochs"),
    ] = None
    steps: Annotated[
        Annotated[int, Meta(ge=1, le=MOST_STEPS)] | None, key("Length in optimiser steps.", kohya="max_train_steps")
    ] = None
    learning_rate: Annotated[NotNegative, key("Learning rate of the U-Net and of the text encoder.")] = 1e-4
    text_encoder_lr: Annotated[NotNegative | None, key("Of the text encoder alone. Absent: learning_rate.")] = None
    unet_lr: Annotated[NotNegative | None, key("Of the U-Net alone. Absent: learning_rate.")] = None
    lr_scheduler: Annotated[
        Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"],
        key("How the learning rate goes over the run."),
    ] = "constant"
    lr_scheduler_num_cycles: Annotated[Count, key("Cycles of cosine_with_restarts; 1 makes it plain cosine.")] = 1
    lr_scheduler_power: Annotated[Positive, key("Exponent of polynomial.")] = 1.0
    lr_warmup_steps: Annotated[
        Natural | Below1,
        key(
            "Steps until the full learning rate, or a share of the run such as 0.05.",
            wanted="a number of steps, or a share of the run below 1",
        ),
    ] = 0
    optimizer: Annotated[Literal["adamw"], key("The optimiser.", kohya="optimizer_type")] = "adamw"
    weight_decay: Annotated[NotNegative, key("AdamW's weight decay.")] = 0.01
    betas: Annotated[
        tuple[Below1, Below1], key("AdamW's decay rates.", wanted="two numbers below 1, such as [0.9, 0.999]")
    ] = (0.9, 0.999)
    eps: Annotated[Positive, key("AdamW's epsilon.")] = 1e-8
    max_grad_norm: Annotated[NotNegative, key("Longer gradients are scaled down to this norm; 0 for never.")] = 1.0
    seed: Annotated[Seed, key("Start of all randomness: the same seed gives the same LoRA.")] = 23
    clip_skip: Annotated[
        Annotated[int, Meta(ge=1, le=12)] | None,
        key("Text encoder layer that is read, counted from the end. Absent: the base's own."),
    ] = None
    max_token_length: Annotated[Literal[75, 150, 225], key("Tokens of a caption that are read; more are cut off.")] = 75
    save_every_n_epochs: Annotated[Natural, key("Write a LoRA after each n-th epoch; 0 for only at the end.")] = 0
    prior_loss_weight: Annotated[NotNegative, key("Weight of regularisation pictures in the loss.")] = 1.0


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
    steps: Annotated[Annotated[int, Meta(ge=1, le=1000)], key("Sampler steps.", kohya="sample_steps")] = 20
    cfg_scale: Annotated[Annotated[float, Meta(ge=1, le=100)], key("How strictly a prompt is followed.")] = 7.0
    seed: Annotated[Seed, key("Seed of the noise.")] = 23
    sampler: Annotated[Literal["ddim", "euler_a"], key("The sampler.", kohya="sample_sampler")] = "euler_a"
    width: Annotated[Pixels | None, key("Width of a picture. Absent: the resolution.")] = None
    height: Annotated[Pixels | None, key("Height of a picture. Absent: the resolution.")] = None


class Output(Section, frozen=True):
    """The files that are written."""

    name: Annotated[
        Text | None, key("Name of the LoRA. Absent: the recipe's file name. Not inherited.", kohya="output_name")
    ] = None
    comment: Annotated[str, key("Free text in the metadata.", kohya="training_comment")] = ""
    metadata: Annotated[bool, key("Write settings, tag counts and folder names into the file for web UIs.")] = True
    preferred_weight: Annotated[Strength | None, key("Strength that web UIs insert when the LoRA is picked.")] = None
    negative: Annotated[str, key("Negative prompt that web UIs insert when the LoRA is picked.")] = ""
    notes: Annotated[str, key("Notes that web UIs show beside the LoRA.")] = ""
    precision: Annotated[
        Literal["fp16", "bf16", "fp32"], key("Number format of the written file.", kohya="save_precision")
    ] = "fp16"


class Document(Section, frozen=True):
    """A lorac recipe: pictures in, a Stable Diffusion 1.x LoRA out."""

    extends: Annotated[Text | None, key("Another recipe whose values hold where this one gives none.")] = None
    matrix: Annotated[dict[str, Any], key('One recipe for each combination: "network.alpha" = [1, 128].')] = {}
    source: Annotated[tuple[Source, ...], key("Pictures to learn from.")] = ()
    regularisation: Annotated[tuple[Regularisation, ...], key("Ordinary pictures of the class.")] = ()
    caption: Caption = Caption()
    network: Network = Network()
    train: Train = Train()
    sample: Sample = Sample()
    output: Output = Output()


SECTIONS: dict[str, type[Section]] = {
    "source": Source,
    "regularisation": Regularisation,
    "caption": Caption,
    "network": Network,
    "train": Train,
    "sample": Sample,
    "output": Output,
}

# Giving one of a pair in a later layer (a child recipe, --set, the matrix) takes the other away.
EXCLUSIVE: dict[tuple[str | int, ...], tuple[str, str]] = {
    ("train", "epochs"): ("train", "steps"),
    ("train", "steps"): ("train", "epochs"),
}

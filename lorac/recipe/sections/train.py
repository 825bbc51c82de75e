"""How the LoRA is trained, and on which base."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from lorac.recipe.fields import (
    ALPHA,
    BUILTIN_BASE,
    MOST_EPOCHS,
    MOST_STEPS,
    SCHEDULE,
    TRAIN,
    Behind,
    Below1,
    Count,
    Natural,
    NotNegative,
    Pixels,
    Positive,
    Ratio,
    Section,
    Seed,
    Text,
    Texts,
    key,
)


class Train(Section, frozen=True):
    """How the LoRA is trained. Exactly one of epochs and steps is needed."""

    base: Annotated[
        Text,
        key(
            '"builtin:mini", or the path of an SD 1.x checkpoint: .safetensors, .ckpt, or a diffusers folder.',
            kohya="pretrained_model_name_or_path",
        ),
    ] = BUILTIN_BASE
    vae: Annotated[Text | None, key("A VAE file or folder instead of the base's own, or where the base has none.")] = (
        None
    )
    resolution: Annotated[
        Annotated[int, Meta(ge=64, le=2048, multiple_of=16)] | None,
        key("Training pictures have about as many pixels as a square of this side. Absent: the base's own."),
    ] = None
    enable_bucket: Annotated[
        bool, key("Sort pictures into shapes near their own; false crops to a square.", metadata="ss_enable_bucket")
    ] = True
    min_bucket_reso: Annotated[Pixels | None, key("Shortest side of a bucket. Absent: 5/8 of the resolution.")] = None
    max_bucket_reso: Annotated[Pixels | None, key("Longest side of a bucket. Absent: 15/8 of the resolution.")] = None
    bucket_reso_steps: Annotated[
        Pixels | None, key("Sides of buckets are multiples of this. Absent: 64, or 16 on builtin:mini.")
    ] = None
    bucket_no_upscale: Annotated[
        bool, key("Never enlarge a picture to fill its bucket.", metadata="ss_bucket_no_upscale")
    ] = False
    bucket_list: Annotated[
        Literal["today", "2023"],
        key("Which buckets there are: kohya's of today, or those of January 2023 with very flat ones."),
    ] = "today"
    flip_aug: Annotated[
        bool,
        key(
            "Show each picture mirrored half of the times; not for characters with sides.",
            nodes=SCHEDULE,
            metadata="ss_flip_aug",
        ),
    ] = False
    latents: Annotated[
        Literal["mean", "sample"],
        key(
            "What of the VAE's distribution is trained: its mean, or one sample drawn for the whole run (kohya).",
            nodes=TRAIN,
        ),
    ] = "mean"
    batch_size: Annotated[Count, key("Pictures per step.", kohya="train_batch_size", nodes=SCHEDULE)] = 1
    gradient_accumulation_steps: Annotated[
        Count,
        key(
            "Batches whose gradients are averaged into one optimiser step.",
            nodes=SCHEDULE,
            metadata="ss_gradient_accumulation_steps",
        ),
    ] = 1
    epochs: Annotated[
        Annotated[int, Meta(ge=1, le=MOST_EPOCHS)] | None,
        key(
            "Length in passes over all pictures; regularisation doubles their number.",
            kohya="max_train_epochs",
            nodes=SCHEDULE,
        ),
    ] = None
    steps: Annotated[
        Annotated[int, Meta(ge=1, le=MOST_STEPS)] | None,
        key("Length in optimiser steps.", kohya="max_train_steps", nodes=SCHEDULE),
    ] = None
    learning_rate: Annotated[
        NotNegative,
        key("Learning rate of the U-Net and of the text encoder.", nodes=SCHEDULE, metadata="ss_learning_rate"),
    ] = 1e-4
    text_encoder_lr: Annotated[NotNegative | None, key("Of the text encoder alone. Absent: learning_rate.")] = None
    unet_lr: Annotated[NotNegative | None, key("Of the U-Net alone. Absent: learning_rate.")] = None
    loraplus_lr_ratio: Annotated[
        Positive | None,
        key(
            "Factor on the learning rate of the up factors (LoRA+); the paper takes 16.",
            nodes=TRAIN,
            source="Hayou et al. 2024, arXiv:2402.12354",
        ),
    ] = None
    loraplus_unet_lr_ratio: Annotated[
        Positive | None, key("The same for the U-Net alone. Absent: loraplus_lr_ratio.", nodes=TRAIN)
    ] = None
    loraplus_text_encoder_lr_ratio: Annotated[
        Positive | None, key("The same for the text encoder alone. Absent: loraplus_lr_ratio.", nodes=TRAIN)
    ] = None
    lr_scheduler: Annotated[
        Literal[
            "constant",
            "constant_with_warmup",
            "linear",
            "cosine",
            "cosine_with_restarts",
            "polynomial",
            "piecewise_constant",
            "inverse_sqrt",
            "cosine_with_min_lr",
            "warmup_stable_decay",
        ],
        key("How the learning rate goes over the run.", nodes=SCHEDULE, metadata="ss_lr_scheduler"),
    ] = "constant"
    lr_scheduler_num_cycles: Annotated[
        Count, key("Cycles of cosine_with_restarts; 1 makes it plain cosine.", nodes=SCHEDULE)
    ] = 1
    lr_scheduler_power: Annotated[Positive, key("Exponent of polynomial.", nodes=SCHEDULE)] = 1.0
    lr_scheduler_timescale: Annotated[
        Count | None, key("Steps over which inverse_sqrt halves its square. Absent: the warm-up.", nodes=SCHEDULE)
    ] = None
    lr_scheduler_min_lr_ratio: Annotated[
        Ratio | None,
        key("Share of the learning rate at which cosine_with_min_lr and warmup_stable_decay end.", nodes=SCHEDULE),
    ] = None
    lr_scheduler_step_rules: Annotated[
        Text | None,
        key(
            "Factors of piecewise_constant: 1:100,0.1:200,0.01 is 1 before step 100, 0.1 before 200, then 0.01.",
            nodes=SCHEDULE,
        ),
    ] = None
    lr_warmup_steps: Annotated[
        Natural | Below1,
        key(
            "Steps until the full learning rate, or a share of the run such as 0.05.",
            wanted="a number of steps, or a share of the run below 1",
            nodes=SCHEDULE,
        ),
    ] = 0
    lr_decay_steps: Annotated[
        Natural | Below1,
        key(
            "Steps at the end in which warmup_stable_decay goes down, or a share of the run.",
            wanted="a number of steps, or a share of the run below 1",
            nodes=SCHEDULE,
        ),
    ] = 0
    optimizer: Annotated[
        Literal["adamw", "adamw8bit", "lion", "prodigy", "adafactor", "adamw_schedule_free"],
        key(
            "The optimiser; all but adamw need an extra package, which a message names.",
            kohya="optimizer_type",
            nodes=TRAIN,
            source=(
                "adamw: Loshchilov and Hutter 2017, arXiv:1711.05101; "
                "adamw8bit: Dettmers et al. 2021, arXiv:2110.02861; "
                "lion: Chen et al. 2023, arXiv:2302.06675; "
                "prodigy: Mishchenko and Defazio 2023, arXiv:2306.06101; "
                "adafactor: Shazeer and Stern 2018, arXiv:1804.04235; "
                "adamw_schedule_free: Defazio et al. 2024, arXiv:2405.15682"
            ),
        ),
    ] = "adamw"
    optimizer_args: Annotated[
        dict[str, bool | int | float | str],
        key("Further settings of the optimiser, by its own names: d_coef = 2.", nodes=TRAIN),
    ] = {}
    weight_decay: Annotated[
        NotNegative | None, key("The optimiser's weight decay. Absent: its own, 0.01 of adamw.", nodes=TRAIN)
    ] = None
    betas: Annotated[
        tuple[Below1, Below1] | None,
        key(
            "The optimiser's decay rates. Absent: its own, [0.9, 0.999] of adamw.",
            wanted="two numbers below 1, such as [0.9, 0.999]",
            nodes=TRAIN,
        ),
    ] = None
    eps: Annotated[Positive | None, key("The optimiser's epsilon. Absent: its own, 1e-8 of adamw.", nodes=TRAIN)] = None
    max_grad_norm: Annotated[
        NotNegative,
        key("Longer gradients are scaled down to this norm; 0 for never.", nodes=TRAIN, metadata="ss_max_grad_norm"),
    ] = 1.0
    ema_decay: Annotated[
        Below1,
        key(
            "The file holds a running average of the LoRA with this decay, such as 0.999; 0 for none.",
            nodes=TRAIN,
            source="averageₙ = d · averageₙ₋₁ + (1 − d) · factorsₙ with d = min(decay, (1 + n) / (10 + n)), n from 0: "
            "Polyak and Juditsky 1992, and the warm-up of TensorFlow's ExponentialMovingAverage",
        ),
    ] = 0.0
    attention: Annotated[
        Literal["auto", "sdpa", "xformers", "math"],
        key(
            "What computes attention on a card: torch (sdpa), xformers, or math, which keeps the whole softmax, in "
            "memory that no plan counts. auto takes the quickest for each size, timed once; build.json says which. All "
            "give the same LoRA but for rounding, so what is trained is not trained again. LoCon, DoRA and dropouts "
            "always use sdpa; on a CPU sdpa and math change nothing.",
        ),
    ] = "auto"
    compile: Annotated[
        bool,
        key(
            "On a card, LoCon and DoRA are trained through torch.compile, which wants Triton and takes minutes for "
            "each size of pictures. What lorac has kernels for is not compiled, nor are networks with dropout."
        ),
    ] = False
    deterministic: Annotated[
        bool,
        key(
            "Training on a card gives the same bits when it is done again on the same card and versions of torch and "
            "CUDA; auto then means sdpa. benchmarks/deterministic.py measures what it costs. On a CPU it is so anyway.",
        ),
    ] = False
    seed: Annotated[
        Seed,
        key(
            "Start of all randomness: the same seed gives the same LoRA.",
            nodes=("schedule", "train"),
            metadata="ss_seed",
        ),
    ] = 23
    clip_skip: Annotated[
        Annotated[int, Meta(ge=1, le=12)] | None,
        key("Text encoder layer that is read, counted from the end. Absent: the base's own."),
    ] = None
    max_token_length: Annotated[
        Literal[75, 150, 225], key("Tokens of a caption that are read; more are cut off.", nodes=SCHEDULE)
    ] = 75
    save_every_n_epochs: Annotated[
        Natural, key("Write a LoRA after each n-th epoch; 0 for only at the end.", nodes=SCHEDULE)
    ] = 0


class Validation(Section, frozen=True):
    """Pictures held out of training, whose loss at fixed noise shows over-fitting. Those of `split` and of `path` are
    measured together."""

    split: Annotated[
        Below1,
        key("Share of the training pictures that is held out; 0 for none.", kohya="validation_split", nodes=SCHEDULE),
    ] = 0.0
    seed: Annotated[
        Seed | None, key("Which pictures and which noise. Absent: that of [train].", kohya="validation_seed")
    ] = None
    path: Annotated[
        Text | None,
        key("Folder or glob of further pictures that are never trained, relative to the recipe."),
    ] = None
    trigger: Annotated[
        Texts | None,
        key(
            "Words that come first in their captions; the rules of [caption] hold too. "
            "Absent: those of the sources, if all have the same."
        ),
    ] = None
    alpha: Annotated[Behind | None, ALPHA] = None

"""The recipe's sections: one definition for validation, defaults, JSON Schema and documentation.

Keys use the words of kohya-ss/sd-scripts where it has one. Where ours is shorter, `key(kohya=…)` names its word, so
that a copied `network_dim` is answered with `did you mean "dim"?`. `key(nodes=…)` names the node kinds whose bytes a
key can change (lowering puts it into their params by that), `key(metadata=…)` the name under which the exported file
tells it. Every section is a frozen struct, so that a recipe can be compared and handed to any thread. Lengths are
pixels, learning rates are per optimiser step.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

BUILTIN_BASE = BUILTIN_TAGGER = "builtin:mini"


def key(
    description: str,
    *,
    kohya: str = "",
    wanted: str = "",
    nodes: tuple[str, ...] = (),
    metadata: str = "",
    source: str = "",
) -> Meta:
    """Documentation of a key, kohya's name for it, and the words for its type where the type says too little.

    `nodes`: the node kinds that read the key as it stands in the recipe; one that lowering translates first (a path, a
    default that the base decides) is not named. `metadata`: the exported file's name for the value. `source`: the
    formula of what it does, the paper, or both; for the generated documentation.
    """
    told = {"kohya": kohya, "wanted": wanted, "nodes": nodes, "metadata": metadata, "source": source}
    return Meta(description=description, extra=told)


SCHEDULE, TRAIN, LOSS, SAMPLE = ("schedule",), ("train",), ("train", "validate"), ("sample",)


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
Rank = Annotated[int, Meta(ge=1, le=1024)]
RankOrNone = Annotated[int, Meta(ge=0, le=1024)]
DOWN_BLOCKS = 12
BLOCKS = 2 * DOWN_BLOCKS + 1
"""kohya's count of the U-Net's blocks: IN00 to IN11, MID, OUT00 to OUT11."""
Pixels = Annotated[int, Meta(ge=16, le=4096, multiple_of=8)]
Behind = Annotated[
    str,
    Meta(
        pattern="^(white|black|drop|#[0-9a-fA-F]{6})$",
        extra={"wanted": '"white", "black", a colour as "#rrggbb", or "drop"'},
    ),
]
ALPHA = key(
    'What lies behind transparent pixels: a colour, or "drop" for the hidden colours under them, as kohya trains them. '
    "Must be chosen if there are any."
)
ALPHA_MASK = key("Count the loss by opacity: transparent parts do not count.")


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
    alpha: Annotated[Behind | None, ALPHA] = None
    alpha_mask: Annotated[bool, ALPHA_MASK] = False


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


class Network(Section, frozen=True):
    """The LoRA itself."""

    dim: Annotated[
        Rank,
        key(
            "Rank of the LoRA: how much it can hold.",
            kohya="network_dim",
            nodes=TRAIN,
            metadata="ss_network_dim",
            source="Hu et al. 2021, arXiv:2106.09685",
        ),
    ] = 4
    alpha: Annotated[
        Positive,
        key(
            "The LoRA works at alpha / dim; less is weaker and leaves more freedom.",
            kohya="network_alpha",
            nodes=TRAIN,
            metadata="ss_network_alpha",
        ),
    ] = 1.0
    targets: Annotated[
        Annotated[tuple[Literal["unet", "text_encoder"], ...], Meta(min_length=1)], key("The parts that get a LoRA.")
    ] = ("unet", "text_encoder")
    weights: Annotated[Text | None, key("A LoRA to go on from.", kohya="network_weights")] = None
    rslora: Annotated[
        bool,
        key(
            "Work at alpha / √dim (rsLoRA), so that high ranks learn as much as low ones.",
            nodes=TRAIN,
            source="Kalajdzievski 2023, arXiv:2312.03732",
        ),
    ] = False
    dora: Annotated[
        bool,
        key(
            "Learn the length of each weight column apart from its direction (DoRA).",
            kohya="dora_wd",
            nodes=TRAIN,
            source="Liu et al. 2024, arXiv:2402.09353",
        ),
    ] = False
    conv_dim: Annotated[
        Rank | None,
        key(
            "Rank for 3x3 convolutions (LoCon). Absent: they get no LoRA.",
            nodes=TRAIN,
            source="LyCORIS: Yeh et al. 2023, arXiv:2309.14859",
        ),
    ] = None
    conv_alpha: Annotated[Positive, key("alpha of the 3x3 convolutions.", nodes=TRAIN)] = 1.0
    dropout: Annotated[
        Below1,
        key(
            "Probability that a number between the two factors is left out of a step.",
            kohya="network_dropout",
            nodes=TRAIN,
            metadata="ss_network_dropout",
        ),
    ] = 0.0
    rank_dropout: Annotated[Below1, key("Probability that a rank is left out of a step.", nodes=TRAIN)] = 0.0
    module_dropout: Annotated[Below1, key("Probability that a module is left out of a step.", nodes=TRAIN)] = 0.0
    scale_weight_norms: Annotated[
        Positive | None,
        key(
            "Longest that a module's change of the weights may get; longer ones are scaled down after each step.",
            nodes=TRAIN,
            metadata="ss_scale_weight_norms",
        ),
    ] = None
    block_dims: Annotated[
        tuple[RankOrNone, ...] | None,
        key(f"Ranks of the U-Net's {BLOCKS} blocks, from the entrance to the exit; 0 leaves a block out.", nodes=TRAIN),
    ] = None
    block_alphas: Annotated[tuple[Positive, ...] | None, key("alpha of each of these blocks.", nodes=TRAIN)] = None
    conv_block_dims: Annotated[
        tuple[RankOrNone, ...] | None, key("Ranks for 3x3 convolutions of each block.", nodes=TRAIN)
    ] = None
    conv_block_alphas: Annotated[
        tuple[Positive, ...] | None, key("alpha for 3x3 convolutions of each block.", nodes=TRAIN)
    ] = None
    down_lr_weight: Annotated[
        tuple[NotNegative, ...] | None,
        key(f"Factors on unet_lr for the {DOWN_BLOCKS} blocks on the way down.", nodes=TRAIN),
    ] = None
    mid_lr_weight: Annotated[NotNegative | None, key("Factor on unet_lr for the block in the middle.", nodes=TRAIN)] = (
        None
    )
    up_lr_weight: Annotated[
        tuple[NotNegative, ...] | None,
        key(f"Factors on unet_lr for the {DOWN_BLOCKS} blocks on the way up.", nodes=TRAIN),
    ] = None


class Train(Section, frozen=True):
    """How the LoRA is trained. Exactly one of epochs and steps is needed."""

    base: Annotated[
        Text,
        key(
            '"builtin:mini", or the path of an SD 1.x checkpoint: .safetensors, .ckpt, or a diffusers folder.',
            kohya="pretrained_model_name_or_path",
        ),
    ] = BUILTIN_BASE
    vae: Annotated[Text | None, key("A VAE file or folder instead of the base's own.")] = None
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
            source="averageₙ = decay · averageₙ₋₁ + (1 − decay) · factorsₙ: Polyak and Juditsky 1992",
        ),
    ] = 0.0
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


class Loss(Section, frozen=True):
    """What the U-Net has to predict, from which noise, and how its error counts."""

    prior_loss_weight: Annotated[
        NotNegative,
        key(
            "Weight of regularisation pictures in the loss.",
            nodes=SCHEDULE,
            metadata="ss_prior_loss_weight",
            source="prior preservation: Ruiz et al. 2022, arXiv:2208.12242",
        ),
    ] = 1.0
    loss_type: Annotated[
        Literal["l2", "l1", "huber", "smooth_l1"],
        key(
            "Measure of the error.",
            nodes=LOSS,
            metadata="ss_loss_type",
            source=(
                "huber is 2c · (√(d² + c²) − c), smooth_l1 2 · (√(d² + c²) − c), of a difference d (sd-scripts): "
                "Khrapov et al. 2024, arXiv:2403.16728"
            ),
        ),
    ] = "l2"
    huber_schedule: Annotated[
        Literal["snr", "exponential", "constant"],
        key(
            "How the threshold of huber and smooth_l1 goes with the timestep.", nodes=LOSS, metadata="ss_huber_schedule"
        ),
    ] = "snr"
    huber_c: Annotated[
        Positive,
        key("Error above which huber and smooth_l1 count like l1.", nodes=LOSS, metadata="ss_huber_c"),
    ] = 0.1
    huber_scale: Annotated[
        Positive,
        key("Factor on that threshold; not for the schedule snr.", nodes=LOSS, metadata="ss_huber_scale"),
    ] = 1.0
    min_snr_gamma: Annotated[
        Positive | None,
        key(
            "Count timesteps of little noise less (min-SNR); the paper takes 5.",
            nodes=LOSS,
            metadata="ss_min_snr_gamma",
            source="min(SNR, γ) / SNR for noise, min(SNR, γ) / (SNR + 1) for v: Hang et al. 2023, arXiv:2303.09556",
        ),
    ] = None
    debiased_estimation_loss: Annotated[
        bool,
        key(
            "Weigh the loss by 1/√SNR (debiased estimation).",
            nodes=LOSS,
            metadata="ss_debiased_estimation",
            source="1 / √SNR, 1 / (SNR + 1) for v, SNR at most 1000: Yu et al. 2023, arXiv:2310.08442",
        ),
    ] = False
    noise_offset: Annotated[
        NotNegative,
        key(
            "Brightness noise for each channel, for darker and lighter pictures; 0.05 is usual.",
            nodes=LOSS,
            metadata="ss_noise_offset",
            source=(
                "ε + offset · ξ, one ξ ~ N(0, 1) for each picture and channel: "
                "Guttenberg 2023, crosslabs.org/blog/diffusion-with-offset-noise"
            ),
        ),
    ] = 0.0
    noise_offset_random_strength: Annotated[
        bool,
        key(
            "Draw the offset of each picture between 0 and noise_offset.",
            nodes=LOSS,
            metadata="ss_noise_offset_random_strength",
        ),
    ] = False
    adaptive_noise_scale: Annotated[
        float | None,
        key("Add this times the picture's mean to noise_offset.", nodes=LOSS, metadata="ss_adaptive_noise_scale"),
    ] = None
    multires_noise_iterations: Annotated[
        Natural,
        key(
            "Add noise of this many coarser sizes (pyramid noise); 6 to 10 is usual, 0 for none.",
            nodes=LOSS,
            metadata="ss_multires_noise_iterations",
            source="ε + Σ discountⁱ · enlarged noise, over its deviation: Whitaker 2023, multires_noise at wandb.ai",
        ),
    ] = 0
    multires_noise_discount: Annotated[
        Ratio,
        key("Strength of each coarser size beside the one before.", nodes=LOSS, metadata="ss_multires_noise_discount"),
    ] = 0.3
    ip_noise_gamma: Annotated[
        NotNegative,
        key(
            "Noise that the U-Net sees beyond what it has to predict (input perturbation); 0.1 is usual.",
            nodes=LOSS,
            metadata="ss_ip_noise_gamma",
            source="the U-Net sees noise ε + γ · ξ and has to predict ε: Ning et al. 2023, arXiv:2301.11706",
        ),
    ] = 0.0
    ip_noise_gamma_random_strength: Annotated[
        bool,
        key(
            "Draw that strength for each picture between 0 and ip_noise_gamma.",
            nodes=LOSS,
            metadata="ss_ip_noise_gamma_random_strength",
        ),
    ] = False
    v_parameterization: Annotated[
        bool | None,
        key(
            "The base predicts v and not noise. Absent: what the base says of itself, else false.",
            source="v = √ᾱ · ε − √(1 − ᾱ) · x₀: Salimans and Ho 2022, arXiv:2202.00512",
        ),
    ] = None
    zero_terminal_snr: Annotated[
        bool | None,
        key(
            "The last timestep is pure noise. Absent: what the base says of itself, else false.",
            source="Lin et al. 2023, arXiv:2305.08891, algorithm 1",
        ),
    ] = None
    scale_v_pred_loss_like_noise_pred: Annotated[
        bool, key("Weigh the error of v as if it were one of noise.", nodes=LOSS)
    ] = False
    v_pred_like_loss: Annotated[
        NotNegative, key("Weight of a loss like that of v beside that of noise; 0 for none.", nodes=LOSS)
    ] = 0.0
    min_timestep: Annotated[
        Annotated[int, Meta(ge=0, le=999)], key("Lowest timestep that is trained.", nodes=SCHEDULE)
    ] = 0
    max_timestep: Annotated[
        Annotated[int, Meta(ge=1, le=1000)], key("Timesteps below this one are trained.", nodes=SCHEDULE)
    ] = 1000


class Validation(Section, frozen=True):
    """Pictures held out of training, whose loss at fixed noise shows over-fitting."""

    split: Annotated[
        Below1,
        key("Share of the training pictures that is held out; 0 for none.", kohya="validation_split", nodes=SCHEDULE),
    ] = 0.0
    seed: Annotated[
        Seed | None, key("Which pictures and which noise. Absent: that of [train].", kohya="validation_seed")
    ] = None


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


class Document(Section, frozen=True):
    """A lorac recipe: pictures in, a Stable Diffusion 1.x LoRA out."""

    preset: Annotated[
        Literal["kohya-2023", "modern"] | None,
        key("Defaults as a whole: those of the article's trainer, or today's. Absent: kohya's own."),
    ] = None
    extends: Annotated[Text | None, key("Another recipe whose values hold where this one gives none.")] = None
    matrix: Annotated[
        dict[str, Any], key('One recipe for each combination: "network.alpha" = [1, 128].', wanted="a table of lists")
    ] = {}
    source: Annotated[tuple[Source, ...], key("Pictures to learn from.")] = ()
    regularisation: Annotated[tuple[Regularisation, ...], key("Ordinary pictures of the class.")] = ()
    caption: Caption = Caption()
    tagger: Tagger = Tagger()
    network: Network = Network()
    train: Train = Train()
    loss: Loss = Loss()
    validation: Validation = Validation()
    sample: Sample = Sample()
    output: Output = Output()


SECTIONS: dict[str, type[Section]] = {
    "source": Source,
    "regularisation": Regularisation,
    "caption": Caption,
    "tagger": Tagger,
    "network": Network,
    "train": Train,
    "loss": Loss,
    "validation": Validation,
    "sample": Sample,
    "output": Output,
}

PATHS = (("tagger", "model"), ("network", "weights"), ("train", "base"), ("train", "vae"))
"""(section, key) of the files and folders that are named outside of [[source]] and [[regularisation]]."""

BUILTINS = {("train", "base"): BUILTIN_BASE, ("tagger", "model"): BUILTIN_TAGGER}
"""What ships with lorac."""

# Giving one of a pair in a later layer (a child recipe, --set, the matrix) takes the other away.
EXCLUSIVE: dict[tuple[str | int, ...], tuple[str, str]] = {
    ("train", "epochs"): ("train", "steps"),
    ("train", "steps"): ("train", "epochs"),
}


def keys(section: type[Section]) -> dict[str, dict[str, Any]]:
    """What `key` says of each key of a section, by the key's name: description, kohya, nodes, metadata."""
    return {
        field.name: {"description": note.description, **(note.extra or {})}
        for field in msgspec.structs.fields(section)
        for note in getattr(field.type, "__metadata__", ())
        if isinstance(note, Meta) and note.extra and "nodes" in note.extra
    }


def read_by(node: str) -> list[tuple[str, str]]:
    """(section, key) of everything that a node kind reads as it stands in the recipe."""
    return [
        (section, name)
        for section, kind in SECTIONS.items()
        for name, facts in keys(kind).items()
        if node in facts["nodes"]
    ]

"""The LoRA itself."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from lorac.recipe.fields import (
    BLOCKS,
    DOWN_BLOCKS,
    TRAIN,
    Below1,
    NotNegative,
    Positive,
    Rank,
    RankOrNone,
    Section,
    Text,
    key,
)


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
    weights: Annotated[
        Text | None,
        key(
            "A LoRA to go on from. Its rank and alpha hold; a recipe that gives others is refused.",
            kohya="network_weights",
        ),
    ] = None
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

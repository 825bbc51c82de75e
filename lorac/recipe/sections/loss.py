"""What the U-Net has to predict, from which noise, and how its error counts."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from lorac.recipe.fields import LOSS, SCHEDULE, Natural, NotNegative, Positive, Ratio, Section, key


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

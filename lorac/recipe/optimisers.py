"""What the optimisers of `optimizer` need and know: packages, and the further settings in `optimizer_args`.

A table, so that a recipe is checked without importing any of them; a test compares it with their signatures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Kind = type[bool] | type[int] | type[float]


@dataclass(frozen=True)
class Known:
    """One optimiser. `path` is its class with its module, as kohya writes it into a file; `package` is what pip calls
    it; `lacks` are keys of [train] that it does not have."""

    path: str
    package: str = ""
    arguments: Mapping[str, Kind] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()


OPTIMISERS = {
    "adamw": Known("torch.optim.adamw.AdamW"),
    "adamw8bit": Known("bitsandbytes.optim.adamw.AdamW8bit", "bitsandbytes", {"min_8bit_size": int}),
    "lion": Known("lion_pytorch.lion_pytorch.Lion", "lion-pytorch", lacks=("eps",)),
    "prodigy": Known(
        "prodigyopt.prodigy.Prodigy",
        "prodigyopt",
        {
            "beta3": float,
            "d0": float,
            "d_coef": float,
            "decouple": bool,
            "growth_rate": float,
            "safeguard_warmup": bool,
            "slice_p": int,
            "use_bias_correction": bool,
        },
    ),
    "adafactor": Known(
        "transformers.optimization.Adafactor",
        "",
        {
            "beta1": float,
            "clip_threshold": float,
            "decay_rate": float,
            "relative_step": bool,
            "scale_parameter": bool,
            "warmup_init": bool,
        },
        lacks=("betas", "eps"),
    ),
    "adamw_schedule_free": Known(
        "schedulefree.adamw_schedulefree.AdamWScheduleFree",
        "schedulefree",
        {"r": float, "warmup_steps": int, "weight_lr_power": float},
    ),
}
"""By the recipe's name. transformers, whose Adafactor is taken, is always there."""


def has_relative_step(optimizer: str, arguments: Mapping[str, object]) -> bool:
    """Whether the optimiser is an Adafactor that makes its own learning rates, as it does unless it is told not to."""
    relative = arguments.get("relative_step", True) or arguments.get("warmup_init", False)
    return optimizer == "adafactor" and bool(relative)

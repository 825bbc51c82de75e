"""How long a step takes, in multiplications: those that it does, and those for which there were time while bytes come
from memory."""

from __future__ import annotations

from lorac.sd.lora_names import TRANSFORMER_MODULES
from lorac.train.memory.run import Plan, Run
from lorac.train.memory.shapes import TOKENS, Unit, factors, steps
from lorac.train.switches import Recompute

BALANCE = {True: 35.0, False: 4.0}
"""Multiplications in the time of a byte, on a card and on a CPU: an RTX 3060's 25 TFLOP/s of float16 with 360 GB/s, two
cores' 130 GFLOP/s with 16 GB/s."""
AWAY = 100
"""How many times longer a CPU takes than a card: the 25 TFLOP/s of before over eight cores' 250 GFLOP/s."""


def work(run: Run, plan: Plan) -> float:
    sizes, count = run.sizes, len(run.networks)
    latent, samples = run.height // 8 * (run.width // 8), run.batch * count
    forward = backward = again = 0.0
    for unit in steps(sizes):
        pixels = latent >> 2 * unit.level
        fore, back, repeated = _unit(run, plan, unit, pixels)
        forward, backward, again = forward + fore, backward + back, again + repeated
    text = sizes.text_layers * sizes.text_weights_of_layer() * TOKENS * run.chunks
    if run.text:
        forward, backward = forward + text, backward + text
    if plan.away:  # as if no caption came twice
        forward += AWAY * text
    trained = factors(sizes, run.ranks)
    weights = (sizes.unet_weights() + (sizes.text_weights() if run.text else 0)) * run.element
    passes = 2 * weights * plan.split
    update = trained * count * (4 + 4 + 16 + (4 if run.ema else 0))
    return samples * (forward + backward + again) + BALANCE[run.cuda] * (passes + update)


def _unit(run: Run, plan: Plan, unit: Unit, pixels: int) -> tuple[float, float, float]:
    """Multiplications of one sample: (forward, backward, what backward computes again)."""
    i, c, context = unit.inputs, unit.channels, TOKENS * run.chunks
    if unit.kind != "transformer":
        convolutions = 9 * i * c + (9 * c * c + (i * c if i != c else 0) if unit.kind == "resnet" else 0)
        saved = convolutions - (9 * c * c if unit.kind == "resnet" else convolutions)
        once = float(pixels * convolutions)
        return once, once, float(pixels * saved) if plan.recompute >= Recompute.BLOCK else 0.0
    feed = pixels * 8 * c * c
    dense: float = pixels * (2 * c * c + 6 * c * c + 4 * c * c) + feed + 2 * context * run.sizes.context * c
    mixed: float = 2 * pixels * (pixels + context) * c
    branches, rank_down = 0.0, 0.0
    for path in (f"{unit.path}.{module}" for module in TRANSFORMER_MODULES):
        rank = run.ranks.get(path, 0)
        outputs, inputs = run.sizes.module(path)
        rows = context if path.endswith(("attn2.to_k", "attn2.to_v")) else pixels
        branches += rows * rank * (inputs + outputs)
        rank_down += rows * rank * inputs
    repeated = rank_down if plan.recompute >= Recompute.ELEMENTWISE else 0.0
    if plan.recompute >= Recompute.TRANSFORMER:
        repeated += dense + mixed + branches - feed / 2
    elif plan.recompute >= Recompute.FEED_FORWARD:
        repeated += feed
    return dense + mixed + branches, dense + 2.5 * mixed + 2 * branches, repeated

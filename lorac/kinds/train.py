"""One slice of the schedule trains the LoRA a little further; a chain of them is the whole run.

The key of a link holds the state before it, its slice, the latents, the base and the settings. So a longer run goes on
from a shorter one as far as their schedules agree, and a crash costs the steps since the last snapshot.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lorac.digest import Digest
from lorac.engine.protocol import Failed, Made, Next, Work
from lorac.graph.nodes import Node, Shape
from lorac.rng import seed64

if TYPE_CHECKING:
    from torch import Tensor

    from lorac.kinds.training import Run
    from lorac.sd.clip import TextEncoder
    from lorac.sd.device import Device
    from lorac.sd.unet import UNet
    from lorac.train.memory.run import Plan
    from lorac.train.objective import Pictures

NAME = "train"
VERSION = 6
SHAPE = Shape.CHAIN
POOL = "gpu"
OUTPUTS = ("lora", "moments", "losses")

LOGVAR = (-30.0, 20.0)
"""The VAE's log-variances are kept within these, as by latent-diffusion and diffusers."""
UNFUSED = ("dropout", "rank_dropout", "module_dropout", "dora", "conv_dim", "conv_block_dims")
"""Keys of [network] that need the plain form of the step, which takes one LoRA."""
LAYOUT = ("block_dims", "block_alphas", "down_lr_weight", "mid_lr_weight", "up_lr_weight")
"""Keys of [network] that say which modules have equal settings; those of a gang are alike."""


def run(work: Work) -> Iterable[Made | Failed]:
    """`lora` is float32 under kohya's names; `moments` the rest of the training state; `losses` float32, one a step."""
    from lorac.train.deterministic import deterministic

    with deterministic("deterministic" in work.params):
        made = _alone(work)
    yield made


def _alone(work: Work) -> Made:
    from lorac.kinds.memory import planned
    from lorac.kinds.training import trainer_of
    from lorac.sd.device import pick
    from lorac.train.gang import advance, no_memory
    from lorac.train.survive import is_out_of_memory

    device, session, stepping = pick(), work.session, False
    try:
        if "run" in session:
            session["run"].begin(work)
        else:
            run = new_run(work)
            plan = planned([work])
            models = load_base(work, device, plan)
            run.recruit(*models)
            session["trainer"], session["run"] = trainer_of([run], *models, plan), run
        legs, stepping = {0: session["run"].leg()}, True
        _, failed = advance(session["trainer"], legs, work.cancelled)
        for reason in failed.values():
            raise reason
        stepping = False
        made: Made = session["run"].end(device)
        return made
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise no_memory(stepping) from error


def run_gang(works: Sequence[Work], more: Next) -> Iterator[tuple[int, Made | Failed | BaseException]]:
    """The same for several."""
    from lorac.kinds.crew import Crew
    from lorac.train.deterministic import deterministic

    with deterministic("deterministic" in works[0].params):
        yield from Crew(works, more).run()


def gang_group(node: Node) -> Hashable | None:
    """By the base, what is trained of it and how it is seen and computed."""
    if alone_because(node.params) is not None:
        return None
    params: Mapping[str, Any] = node.params
    layout = [params["network"].get(name) for name in LAYOUT]
    kernels = [params.get("deterministic"), node.hints.get("attention")]
    settings = [params["targets"], params["clip_skip"], params["prediction"], layout, kernels]
    return node.inputs["unet"].node, node.inputs["text"].node, repr(settings)


def alone_because(params: Mapping[str, Any]) -> str | None:
    """The key of [network] for which a LoRA is trained alone."""
    return next((f"network.{name}" for name in UNFUSED if params["network"].get(name)), None)


def gang_key(work: Work) -> Hashable:
    """By the base's bytes, the length of captions and the shapes of the steps: see `gang_size.shapes`."""
    from lorac.kinds.gang_size import shapes
    from lorac.train.slices import decode

    steps = decode(work.read(work.items[0].inputs["slice"]))
    return work.shared["unet"], work.shared["text"], steps.max_token_length, shapes(work, steps)


def gang_limit(works: Sequence[Work]) -> int:
    """As many as memory is predicted to hold."""
    from lorac.kinds.gang_size import of_works

    return of_works(works)


def new_run(work: Work) -> Run:
    """A LoRA's training, from the link of this work on."""
    from lorac.kinds.training import Run

    train = work.params["train"]
    return Run(work, pictures(work, train["latents"], train["seed"]))


def load_base(work: Work, device: Device, plan: Plan | None) -> tuple[UNet, TextEncoder]:
    """Models that no trainer has changed yet."""
    from lorac.kinds import weights
    from lorac.sd.device import CPU
    from lorac.train.survive import give_back

    if device.name == "cuda":
        give_back()  # a card's memory, of trainers before this one, whose parts hold each other
    unet = weights.unet(work.open(work.shared["unet"]), device.dtype).to(device.name)
    of_text = CPU if plan and plan.away else device
    return unet, weights.text_encoder(work.open(work.shared["text"]), of_text.dtype).to(of_text.name)


def pictures(work: Work, latents: str = "mean", seed: int = 0) -> Pictures:
    """Latents and masks in the order in which the schedule counts pictures, from the ports `latent.N`, `flipped.N` and
    `mask.N`. `latents` is "mean", or "sample" for one draw from the VAE's distribution that holds for the whole run."""
    from lorac.train.objective import Pictures

    found: dict[str, list[Any]] = {"latent": [], "flipped": [], "mask": []}
    for port in latent_ports(work):
        number, count = port.removeprefix("latent."), len(work.columns[port])
        for kind, values in found.items():
            values += work.columns.get(f"{kind}.{number}", [None] * count)
    drawn = {
        kind: [digest and _latent(work, digest, latents, seed64(seed, kind, i)) for i, digest in enumerate(found[kind])]
        for kind in ("latent", "flipped")
    }
    return Pictures(drawn["latent"], drawn["flipped"], [digest and _mask(work, digest) for digest in found["mask"]])


def latent_ports(work: Work) -> list[str]:
    """The ports `latent.N` in the order of N, in which the schedule counts pictures."""
    ports = (port for port in work.columns if port.startswith("latent."))
    return sorted(ports, key=lambda port: int(port.removeprefix("latent.")))


def _latent(work: Work, digest: Digest, latents: str, seed: int) -> Tensor:
    """The VAE's mean or, for `latents = "sample"`, the mean and the VAE's deviation times noise; (C, H, W)."""
    import torch

    from lorac.sd.safetensors import deserialise

    tensors = deserialise(work.read(digest), "latent")[0]
    if latents == "mean":
        return tensors["mean"]
    noise_CHW = torch.randn(tensors["mean"].shape, generator=torch.Generator().manual_seed(seed))
    return tensors["mean"] + (tensors["logvar"].clamp(*LOGVAR) / 2).exp() * noise_CHW


def _mask(work: Work, digest: Digest) -> Tensor | None:
    """From 0 to 1, (height, width) in pixels; None for a picture without one."""
    import torch

    data = work.read(digest)
    if not data:
        return None
    _, size, _, values = data.split(b"\n", 3)  # binary PGM
    width, height = map(int, size.split())
    return torch.frombuffer(bytearray(values), dtype=torch.uint8).view(height, width) / 255.0

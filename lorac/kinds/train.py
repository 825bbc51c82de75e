"""One slice of the schedule trains the LoRA a little further; a chain of them is the whole run.

The key of a link holds the state before it, its slice, the latents, the base and the settings. So a longer run goes on
from a shorter one as far as their schedules agree, and a crash costs the steps since the last snapshot.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorac.digest import Digest
from lorac.engine.protocol import Failed, Item, Made, Work
from lorac.graph.nodes import Shape
from lorac.rng import seed64

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lorac.train.objective import Pictures
    from lorac.train.slices import Slice
    from lorac.train.step import Trainer

NAME = "train"
VERSION = 4
SHAPE = Shape.CHAIN
POOL = "gpu"
OUTPUTS = ("lora", "moments", "losses")

SNAPSHOT = "snapshot"
SNAPSHOT_SECONDS = 30.0
"""How much training a crash may cost."""
LOGVAR = (-30.0, 20.0)
"""The VAE's log-variances are kept within these, as by latent-diffusion and diffusers."""
_LORA = "lora_"


def run(work: Work) -> Iterable[Made | Failed]:
    """`lora` is float32 under kohya's names; `moments` the rest of the training state; `losses` float32, one a step."""
    import torch

    from lorac.sd.device import pick
    from lorac.sd.safetensors import write
    from lorac.train.loop import train_segment
    from lorac.train.slices import decode

    device = pick()
    for item in work.items:
        part = decode(work.read(item.inputs["slice"]))
        if "trainer" not in work.session:
            work.session["trainer"] = _trainer(work, part, device.name, device.dtype)
            work.session["pictures"] = pictures(work, work.params["train"]["latents"], work.params["train"]["seed"])
        before = _state_before(work, item)
        first = int(before["step"]) - part.first_step if before else 0
        started, done = time.perf_counter(), 0
        whole = part.first_step + len(part)

        def report(step: int, loss: float, part: Slice = part) -> None:
            nonlocal done
            done = step
            work.progress(part.first_step + step, _total(work, part), f"steps, loss {loss:.4f}")

        state, losses = train_segment(
            work.session["trainer"],
            part,
            work.session["pictures"],
            state=before,
            progress=report,
            cancelled=work.cancelled,
            snapshot=lambda state: work.keep(SNAPSHOT, lambda path: write(path, state, {})),
            snapshot_seconds=SNAPSHOT_SECONDS,
        )
        work.measure(
            {"steps": done - first, "seconds": time.perf_counter() - started, "peak_bytes": device.peak_bytes()}
        )
        assert int(state["step"]) == whole
        yield Made(item.index, _outputs(work, state, torch.tensor(losses)))


def _trainer(work: Work, part: Slice, device: str, dtype: torch.dtype) -> Trainer:
    from lorac.kinds import weights
    from lorac.kinds.start import load_start
    from lorac.sd.lora import LoRANetwork, NetworkSettings
    from lorac.train.objective import Objective
    from lorac.train.step import Optimisation, Trainer

    params = work.params
    unet = weights.unet(work.open(work.shared["unet"]), dtype).to(device)
    text = weights.text_encoder(work.open(work.shared["text"]), dtype).to(device)
    network, train = params["network"], params["train"]
    lora = LoRANetwork(unet, text, NetworkSettings.of(network, train), params["targets"], train["seed"])
    if "start" in work.shared:
        load_start(lora, work.open(work.shared["start"]))
    return Trainer(
        unet,
        text,
        lora,
        trained=params["targets"],
        clip_skip=params["clip_skip"],
        max_token_length=part.max_token_length,
        settings=Optimisation.of(network, train),
        objective=Objective.of(params["loss"], params["prediction"]),
        seed=train["seed"],
    )


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


def _state_before(work: Work, item: Item) -> dict[str, Tensor] | None:
    """A snapshot of this link if there is one, else the end of the link before it; None at the start of the run."""
    from lorac.sd.safetensors import tensors_of

    snapshot = work.kept(SNAPSHOT)
    if snapshot is not None:
        return tensors_of(snapshot)
    if "previous.lora" not in item.inputs:
        return None
    lora, moments = (work.open(item.inputs[f"previous.{name}"]) for name in ("lora", "moments"))
    return {**tensors_of(lora), **tensors_of(moments)}


def _outputs(work: Work, state: dict[str, Tensor], losses: Tensor) -> dict[str, bytes | Path]:
    """The state as two files, so that the moments, two thirds of it, can be dropped alone."""
    from lorac.sd.safetensors import write

    work.scratch.mkdir(parents=True, exist_ok=True)
    lora, moments = work.scratch / "lora.safetensors", work.scratch / "moments.safetensors"
    write(lora, {name: tensor for name, tensor in state.items() if name.startswith(_LORA)}, {})
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(_LORA) and name != "losses"}
    write(moments, rest, {})
    return {"lora": lora, "moments": moments, "losses": losses.float().numpy().tobytes()}


def _total(work: Work, part: Slice) -> int:
    """Steps of the whole run: all slices but the last are as long as the first."""
    return max(part.first_step + len(part), work.total * len(part))

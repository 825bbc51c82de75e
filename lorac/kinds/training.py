"""The training of one LoRA as the kind `train` sees it: link after link of a chain, each with its own work."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorac.engine.protocol import Made, Work
from lorac.store.files import explained
from lorac.train.slices import decode

if TYPE_CHECKING:
    from torch import Tensor

    from lorac.sd.clip import TextEncoder
    from lorac.sd.device import Device
    from lorac.sd.unet import UNet
    from lorac.train.loop import Leg
    from lorac.train.memory.run import Plan
    from lorac.train.objective import Pictures
    from lorac.train.step import Member, Trainer

SNAPSHOT = "snapshot"
SNAPSHOT_SECONDS = 30.0
"""How much training a crash may cost."""
_LORA = "lora_"


class Run:
    """What a LoRA has from its first link to its last. Raises InputError for settings that cannot be used."""

    member: Member
    kernels: Mapping[str, str]
    """What attention = "auto" has chosen by size, in the trainer that the member is in."""

    def __init__(self, work: Work, pictures: Pictures) -> None:
        from lorac.sd.device import pick
        from lorac.train.fused.backends import check as check_attention
        from lorac.train.library import check
        from lorac.train.optimiser import Optimisation

        check_attention(attention_of(work), pick().name == "cuda")
        self.settings = Optimisation.of(work.params["network"], work.params["train"])
        if self.settings.optimizer != "adamw":
            check(self.settings)
        self.pictures = pictures
        self.begin(work)

    def begin(self, work: Work) -> None:
        """The next link."""
        self.work, (self._item,) = work, work.items
        self.slice = decode(work.read(self._item.inputs["slice"]))
        self._leg: Leg | None = None
        self.state = self._state_before()
        self._found = int(self.state["step"]) - self.slice.first_step if self.state else 0
        self._seconds = 0.0

    def recruit(self, unet: UNet, text: TextEncoder) -> None:
        """Make the member: its network, on models that no trainer has changed yet."""
        from lorac.kinds.start import load_start
        from lorac.sd.lora import LoRANetwork, NetworkSettings
        from lorac.train.objective import Objective
        from lorac.train.step import Member

        params = self.work.params
        network, train = params["network"], params["train"]
        lora = LoRANetwork(unet, text, NetworkSettings.of(network, train), params["targets"], train["seed"])
        if "start" in self.work.shared:
            load_start(lora, self.work.open(self.work.shared["start"]))
        objective = Objective.of(params["loss"], params["prediction"])
        self.member = Member(
            lora, trained=params["targets"], settings=self.settings, objective=objective, seed=train["seed"]
        )

    def leg(self) -> Leg:
        """What is left of the link, for a member that is in a trainer."""
        from lorac.train.loop import Leg

        self._resumed = time.perf_counter()
        state, self.state = self.state, None
        leg = self._leg = Leg(
            self.member,
            self.slice,
            self.pictures,
            state=state,
            progress=self._report,
            snapshot=self._keep,
            snapshot_seconds=SNAPSHOT_SECONDS,
        )
        return leg

    def pause(self) -> None:
        """Remember where the leg is, if there is one: the next goes on from there, on other models."""
        if self._leg is not None:
            self.state, self._leg = self._leg.state(), None
            self._seconds += time.perf_counter() - self._resumed
        del self.member

    def save(self) -> None:
        """Take a snapshot of what is paused."""
        if self.state is not None:
            self._keep(self.state)

    def restart(self) -> None:
        """Go back to the last snapshot of the link, or to its start; other models come."""
        if hasattr(self, "member"):
            del self.member
        self.begin(self.work)

    def end(self, device: Device) -> Made:
        """What the link has made. `lora` and `moments` are two files, so that the moments, two thirds of the state, can
        be dropped alone."""
        import torch

        from lorac.sd.safetensors import write

        assert self._leg is not None
        state, losses = self._leg.end()
        steps, seconds = self._leg.done - self._found, self._seconds + time.perf_counter() - self._resumed
        self.work.measure({"steps": steps, "seconds": seconds, "peak_bytes": device.peak_bytes()})
        if self.kernels:
            self.work.measure({"attention": self.kernels})
        outputs: dict[str, bytes | Path] = {n: self.work.scratch / f"{n}.safetensors" for n in ("lora", "moments")}
        parts: dict[str, dict[str, Tensor]] = {"lora": {}, "moments": {}}
        for name, tensor in state.items():
            if name != "losses":
                parts["lora" if name.startswith(_LORA) else "moments"][name] = tensor
        with explained(self.work.scratch):
            self.work.scratch.mkdir(parents=True, exist_ok=True)
            for name, tensors in parts.items():
                write(self.work.scratch / f"{name}.safetensors", tensors, {})
        return Made(self._item.index, {**outputs, "losses": torch.tensor(losses).float().numpy().tobytes()})

    def _keep(self, state: dict[str, Tensor]) -> None:
        from lorac.sd.safetensors import write

        self.work.keep(SNAPSHOT, lambda path: write(path, state, {}))

    def _report(self, done: int, loss: float) -> None:
        total = max(self.slice.first_step + len(self.slice), self.work.total * len(self.slice))
        # All slices but the last are as long as the first.
        self.work.progress(self.slice.first_step + done, total, f"steps, loss {loss:.4f}")

    def _state_before(self) -> dict[str, Tensor] | None:
        """A snapshot of this link if there is one, else the end of the link before it; None at the start of the run."""
        from lorac.sd.safetensors import tensors_of

        snapshot = self.work.kept(SNAPSHOT)
        if snapshot is not None:
            return tensors_of(snapshot)
        if "previous.lora" not in self._item.inputs:
            return None
        lora, moments = (self.work.open(self._item.inputs[f"previous.{name}"]) for name in ("lora", "moments"))
        return {**tensors_of(lora), **tensors_of(moments)}


def trainer_of(runs: Sequence[Run], unet: UNet, text: TextEncoder, plan: Plan | None) -> Trainer:
    """One for the members of all runs, whose networks are on these models."""
    from lorac.train.memory.run import TAPES
    from lorac.train.step import Trainer
    from lorac.train.switches import Switches

    trainer = Trainer(
        unet,
        text,
        [run.member for run in runs],
        clip_skip=runs[0].work.params["clip_skip"],
        max_token_length=runs[0].slice.max_token_length,
        switches=Switches(
            recompute=plan.recompute if plan else None,
            attention=attention_of(runs[0].work),
            compile=bool(runs[0].work.hints.get("compile")) and unet.conv_in.weight.is_cuda,
        ),
        split=plan.split if plan else 1,
        tapes=plan.tapes if plan else TAPES,
        warn=runs[0].work.warn,
    )
    for run in runs:
        run.kernels = trainer.fused.attention.chosen if trainer.fused else {}
    return trainer


def attention_of(work: Work) -> str:
    """The recipe's, which is a hint: it changes what is made by rounding only."""
    return str(work.hints.get("attention", "auto"))

"""One training step, as kohya-ss/sd-scripts defines it, of one LoRA or of several in one pass.

Each LoRA acts on its own samples alone, so one backward of the sum of all losses gives each its own gradients.

Shape suffixes: B batch, C latent channels, H height, W width, K chunks of a caption, L tokens, D text channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

import torch
from torch import Tensor

from lorac.sd.clip import TextEncoder
from lorac.sd.lora_names import PARTS, Part
from lorac.sd.lora_stack import Stack
from lorac.sd.unet import UNet
from lorac.train.compiled import Compiled
from lorac.train.fused.network import Fused
from lorac.train.helper import Inline, helper_for, keep_freed_memory, threads
from lorac.train.member import Member
from lorac.train.memory.run import TAPES
from lorac.train.objective import Batch, Pictures, packed, unpacked
from lorac.train.passes import Share, passes
from lorac.train.replay import replay_for
from lorac.train.slices import Step
from lorac.train.survive import within_memory
from lorac.train.switches import Switches
from lorac.train.text_states import TextStates

__all__ = ["Member", "Trainer", "Turn"]

Turn: TypeAlias = tuple[Step, Pictures]
"""The next step of a member, and what its samples count."""


class Trainer:
    """A base and the members that are trained on it.

    The base may be float32 or, on a GPU, float16: then losses are scaled. `clip_skip` counts from 1, the last layer.
    Members train the same parts; several need networks that can be fused. Fused operations take the place of the
    modules of `unet` and `text_encoder`. A batch is cut into `split` passes, whose gradients add up; into
    more when memory runs out, of which `warn` is told. Recorded steps take at most `tapes` bytes; CUDA graphs do while
    another pass is done.
    """

    def __init__(
        self,
        unet: UNet,
        text_encoder: TextEncoder,
        members: Sequence[Member],
        *,
        clip_skip: int = 1,
        max_token_length: int = 75,
        switches: Switches | None = None,
        split: int = 1,
        tapes: int = TAPES,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.switches = switches or Switches()
        if self.switches.keep_memory:
            keep_freed_memory()
        self.unet, self.text_encoder, self.members, self.split = unet, text_encoder, list(members), split
        self.clip_skip, self.max_token_length = clip_skip, max_token_length
        self.device, self.dtype = unet.conv_in.weight.device, unet.conv_in.weight.dtype
        self.trained, self._warn = self.members[0].trained, warn
        merged = all(member.lora.merged for member in self.members)
        # The operations of a large base use all cores as they are.
        helper = helper_for(self.device) if self.switches.beside and merged else Inline()
        fused = self.switches.fused and all(member.lora.plain for member in self.members)
        assert fused or len(self.members) == 1, "only networks that can be fused are trained together"
        self.tapes = replay_for(
            self.device,
            self.dtype,
            self.switches,
            helper,
            fused=fused,
            merged=fused and merged,
            room=tapes,
            recover=self._forget_pass,
            warn=warn,
        )
        self.fused = self._fuse(self.tapes) if fused else None
        # A network with dropout is another one at each step.
        compiled = self.switches.compile and not fused and not self.members[0].lora.dropping
        self._estimate: Callable[..., Tensor] = Compiled(unet, warn) if compiled else unet
        self._small = self.fused is not None and merged
        for member in self.members:
            member.lora.fuse(self._fused_parts())
            member.join(self.device, self.dtype, self._merging(), helper)
        frozen = not any(member.lora.parameters("text_encoder") for member in self.members)
        self._text_states = TextStates(text_encoder, clip_skip) if self.switches.text_states and frozen else None

    def step(self, turns: Sequence[Turn | None]) -> list[Tensor | None]:
        """Do one optimiser step of every member that has a turn; returns its loss before it, a float32 scalar on the
        device.

        The gradients of the step's batches are averaged. The pictures of a batch have the same size.
        """
        largest = max((len(batch) for turn in turns if turn for batch in turn[0].batches), default=1)
        found, self.split = within_memory(
            lambda split: self._gradients(turns, split), self.split, largest, self._forget, self._warn
        )
        losses, norms = found
        for number, (member, turn) in enumerate(zip(self.members, turns, strict=True)):
            if turn is not None:
                member.update(norms[number] if norms else member.norm(), turn[0])
        return losses

    def _gradients(self, turns: Sequence[Turn | None], split: int) -> tuple[list[Tensor | None], Sequence[Tensor]]:
        """All passes of a step: the losses of the members, and the norms of their gradients if those are known."""
        losses: list[Tensor | None] = [None] * len(turns)
        norms: Sequence[Tensor] = ()
        for number, shares in enumerate(passes(turns, split)):
            if not self.fused:
                self.members[0].start_pass(shares[0].step, number)
            found, norms = self._pass(shares, number)
            for share, loss in zip(shares, found, strict=True):
                before = losses[share.member]
                losses[share.member] = loss if before is None else before + loss
        return losses, norms

    def _forget(self) -> bool:
        """Throw away what passes that could not be finished have left, and all that was made for their sizes; returns
        whether what did the passes took memory that they can do without."""
        for member in self.members:
            member.optimiser.settle()  # the last step's updates may still want their gradients
        made_room = self.tapes.forget()
        self._forget_pass()
        for member in self.members:
            for part in member.trained:
                for factor in member.lora.parameters(part):
                    factor.grad = None
        return made_room

    def _forget_pass(self) -> None:
        """Throw away what a pass that was not finished has left."""
        if self.fused:
            self.fused.forget()

    def few_threads(self) -> AbstractContextManager[None]:
        """For the caller's thread while it trains a small base: operations are short, and the helper has a core."""
        return threads(1) if self._small else nullcontext()

    def _pass(self, shares: Sequence[Share], number: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """What one pass adds to the losses of its members; and the norms of their gradients, if they are fused."""
        batches = [self.members[s.member].objective.batch(s.samples, s.pictures, self.max_token_length) for s in shares]
        ids_BKL = _joined([batch.ids for batch in self._rows(shares, batches)])
        states_BLD = None if self._text_states is None else self._text_states.of(ids_BKL, self.device, self.dtype)

        def work(context: Tensor | None, *fields: Tensor | None) -> tuple[Tensor, ...]:
            if self.fused:
                self.fused.start(accumulating=number > 0)
            losses = self._losses(shares, unpacked(fields), context)
            scaled = [self.members[s.member].loss_scale.scaled(loss) for s, loss in zip(shares, losses, strict=True)]
            torch.autograd.backward(scaled)
            norms = self.fused.finish() if self.fused else []
            return (*(loss.detach() for loss in losses), *norms)

        key = (number > 0, tuple((share.member, share.part, len(share.samples)) for share in shares))
        factors = [factor for member in self.members for part in PARTS for factor in member.lora.parameters(part)]
        found = self.tapes.run(key, (states_BLD, *packed(batches)), work, factors)
        return found[: len(shares)], found[len(shares) :]

    def _losses(self, shares: Sequence[Share], batches: Sequence[Batch], context_BLD: Tensor | None) -> list[Tensor]:
        """The losses of one pass. `context_BLD` is given where the text encoder is not trained."""
        rows = self._rows(shares, batches)
        if context_BLD is None:
            context_BLD = self._context(_joined([batch.ids for batch in rows]))
        for member in self.members:
            self.tapes.do(member.optimiser.settle)
        noisy_BCHW = _joined([batch.noisy for batch in rows]).to(self.device, self.dtype)
        t_B = _joined([batch.timestep for batch in rows]).to(self.device)
        estimate_BCHW = self._estimate(noisy_BCHW, t_B, context_BLD)
        estimates = [estimate_BCHW] if len(rows) == 1 else estimate_BCHW.chunk(len(rows))
        parts = dict(zip(self._places(shares), estimates, strict=True))
        objectives = [self.members[share.member].objective for share in shares]
        return [
            objective.of_samples(parts[share.member], batch).mean() * share.part
            for objective, share, batch in zip(objectives, shares, batches, strict=True)
        ]

    def _places(self, shares: Sequence[Share]) -> Sequence[int]:
        """Whose samples the rows of a pass are, in order: fused operations want as many of every member."""
        return range(len(self.members)) if self.fused else [share.member for share in shares]

    def _rows(self, shares: Sequence[Share], batches: Sequence[Batch]) -> list[Batch]:
        """A batch for every place. Who has no share gets another's, and no loss."""
        own = {share.member: batch for share, batch in zip(shares, batches, strict=True)}
        return [own.get(place, batches[0]) for place in self._places(shares)]

    def _context(self, ids_BKL: Tensor) -> Tensor:
        with torch.set_grad_enabled("text_encoder" in self.trained):
            context_BLD: Tensor = self.text_encoder(ids_BKL.to(self.device), self.clip_skip)
        return context_BLD

    def _fuse(self, helper: Executor) -> Fused:
        loras = [member.lora for member in self.members]
        return Fused(self.unet, self.text_encoder, loras, self.trained, helper, self.switches)

    def _fused_parts(self) -> Sequence[Part]:
        """Whose layers `Fused` has replaced."""
        if self.fused is None:
            return ()
        return PARTS if len(self.members) > 1 else [part for part in PARTS if part in ("unet", *self.trained)]

    def _merging(self) -> Callable[[Stack], None]:
        """What puts a stack's new factors into the layers."""
        return Stack.merge if self.fused else lambda stack: None


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))

"""A linear layer with its LoRA, as the fused operations use it: forward, and backward without autograd.

    y = x Wᵀ + s · (x downᵀ) upᵀ + b

The fused operations never look at a weight: `merged` and `added` say how the sum is computed. Where several LoRAs are
trained at once, a batch begins with all samples of the first, then come those of the second, and so on.

Shape suffixes: R rows, the tokens of all samples; S samples, T tokens of one; N networks, L rows of one; K neighbouring
modules with one input; O outputs of one module, Y = K · O; I inputs.
"""

from __future__ import annotations

from torch import Tensor

from lorac.train.fused.added import AddedForm
from lorac.train.fused.gradients import StackGradients
from lorac.train.fused.merged import MergedForm
from lorac.train.switches import Recompute


class Adapted:
    """Neighbouring modules of a stack that share their input, as one layer: their outputs beside each other.

    Tensors at rows are (R, I) and (R, Y), of any memory order; an input may also be (S, T, I). Tensors at columns have
    channels before tokens, as attention wants them: (K · S · O, T), contiguous, for each module the samples one below
    the other; `.view(K, S · heads, -1, T)` splits heads without moving a byte. With `samples` 1 that is (Y, R), the
    tokens of all samples beside each other.

    `x` given to a backward is what forward got, kept or computed again. It must stay unchanged until the gradients of
    the stack are finished, and so must `dy`.
    """

    records = True
    """Whether backward looks at the input that it is given."""

    def __init__(
        self, gradients: StackGradients, first: int, count: int = 1, recompute: Recompute = Recompute.ELEMENTWISE
    ) -> None:
        """With `recompute` NOTHING the added form keeps x downᵀ from forward to backward."""
        self._networks, self._count = len(gradients.stack), count
        self._form: MergedForm | AddedForm
        if gradients.stack.merged:
            self._form = MergedForm(gradients, first, count)
        else:
            self._form = AddedForm(gradients, first, count, keeps=recompute == Recompute.NOTHING)

    def rows(self, x_RI: Tensor, plus_RY: Tensor | None = None, times: float = 1.0) -> Tensor:
        """(R, Y), contiguous: `times` y, and then `plus_RY`."""
        return self._form.rows(self._by_network(x_RI), plus_RY, times)

    def columns(self, x_RI: Tensor, samples: int = 1) -> Tensor:
        """The same as columns, (K · S · O, T)."""
        return self._form.columns(self._by_network(x_RI), samples)

    def backward(self, x_RI: Tensor, dy: Tensor, plus_RI: Tensor | None = None) -> Tensor:
        """The gradient of `x_RI` (R, I), and `plus_RI`.

        `dy` is (R, Y), in any memory order, or for `columns` of several samples (K, S, O, T), contiguous.
        """
        x_NLI = self._by_network(x_RI)
        return self._form.backward(x_NLI, self._gradient(dy), plus_RI)

    def backward_columns(self, x_RI: Tensor, dy: Tensor, samples: int = 1) -> Tensor:
        """The gradient of `x_RI` as columns, (S · I, T)."""
        return self._form.backward_columns(self._by_network(x_RI), self._gradient(dy), samples)

    def record(self, x_RI: Tensor, dy: Tensor) -> None:
        """Backward where nobody wants the gradient of `x_RI`."""
        self._form.record(self._by_network(x_RI), self._gradient(dy))

    def forget(self) -> None:
        """Backward will not come: let go of what forward kept for it."""
        if isinstance(self._form, AddedForm):
            self._form.forget()

    def _by_network(self, x: Tensor) -> Tensor:
        """An input as (N, L, I)."""
        if x.dim() == 2:
            return x.view(self._networks, -1, x.shape[1])
        return x if len(x) == self._networks else x.reshape(self._networks, -1, x.shape[2])

    def _gradient(self, dy: Tensor) -> Tensor:
        """A gradient of outputs as (K, N, L, O)."""
        if dy.dim() == 2:
            return dy.view(self._networks, -1, self._count, dy.shape[1] // self._count).permute(2, 0, 1, 3)
        count, samples, outputs, tokens = dy.shape
        if samples == self._networks:
            return dy.mT
        # The rows of a network beside each other, below those of one channel.
        dy_KNOBT = dy.view(count, self._networks, -1, outputs, tokens).transpose(2, 3)
        return dy_KNOBT.reshape(count, self._networks, outputs, -1).mT

"""torch.compile, for networks that are trained in the plain form, such as DoRA: the fused form has its own kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

from lorac.train.tape import MOST


class Compiled:
    """Calls a module through torch.compile, which compiles it for each shape of its inputs anew, for `MOST` shapes.

    Where it cannot be compiled (no Triton, say), it is called as it is from then on, and `warn` is told.
    """

    def __init__(self, module: Callable[..., Tensor], warn: Callable[[str], None]) -> None:
        import torch._dynamo

        torch._dynamo.config.recompile_limit = MOST
        self._module, self._warn = module, warn
        self._compiled: Callable[..., Tensor] | None = torch.compile(module, dynamic=False, fullgraph=True)

    def __call__(self, *inputs: Any) -> Tensor:
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        if self._compiled is not None:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "The .grad attribute")  # at which dynamo looks, of all tensors
                    return self._compiled(*inputs)
            except (FailOnRecompileLimitHit, TorchDynamoException) as error:
                self._compiled = None
                reason = " ".join(str(error).splitlines()[:2])
                self._warn(f"the U-Net is not compiled, which makes steps slower: {reason}")
        return self._module(*inputs)

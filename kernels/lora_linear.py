"""A linear layer with its LoRA (Hu et al. 2021, arXiv:2106.09685), of several modules and of several networks at once.

    y  = x Wᵀ + b + m upᵀ + plus,   m  = s · x downᵀ
    dx = dy W     + dm down + plus, dm = s · dy up,   d_up = dyᵀ m,   d_down = dmᵀ x

Both y and dx are `a B + m D`, two products with one sum, so one kernel does both: its loop over the inputs goes on
over the rank, where torch writes the first product, and reads and writes it again to add the second. m and dm are
narrow and come from a product of their own. Modules with one input stand beside each other (q, k and v in one launch);
the rows of each network use its factors and the one frozen W. Factors are read as they are held, in float32 or cast.

A tile follows from the shape alone: one that is chosen by timing would give other bits on another day.

Shape suffixes: N networks, L rows of one, R = N · L; K modules with one input, O outputs of one, Y = K · O; I inputs;
Q rank, M = K · Q.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lorac.kernels import gate
from lorac.kernels.gate import blocks, kernel
from torch import Tensor

if TYPE_CHECKING:
    import triton.language as tl

TILES = ((128, 128, 32, 8), (128, 64, 32, 4), (64, 64, 64, 4), (32, 64, 32, 4), (32, 32, 64, 2))
"""Rows and columns of a program's result, length of a step along the inputs, warps."""

PROGRAMS = 128
"""A launch takes the largest tile that makes so many: an H100 has 132 multiprocessors, an RTX 3060 28."""


def opens(x: Tensor) -> bool:
    """Whether layers use the kernel for this input. Float32 has no tensor cores worth the name."""
    return "lora_linear" not in gate.UNUSED and x.dtype != torch.float32 and gate.dots(x)


def lora_linear_definition(
    x_NLI: Tensor,
    weight_YI: Tensor,
    down_NMI: Tensor,
    up_KNOQ: Tensor,
    scale_N: Tensor,
    bias_Y: Tensor | None = None,
    plus_NLY: Tensor | None = None,
) -> Tensor:
    """What the operation means, in plain PyTorch: (N, L, Y)."""
    middle_NLM = x_NLI @ down_NMI.to(x_NLI.dtype).mT * scale_N.to(x_NLI.dtype)[:, None, None]
    middles = middle_NLM.chunk(len(up_KNOQ), dim=2)
    changes = [middle_NLQ @ up_NOQ.to(x_NLI.dtype).mT for middle_NLQ, up_NOQ in zip(middles, up_KNOQ, strict=True)]
    y_NLY = torch.nn.functional.linear(x_NLI, weight_YI, bias_Y) + torch.cat(changes, dim=2)
    return y_NLY if plus_NLY is None else y_NLY + plus_NLY


@kernel
def _add_product(
    sum_LO: tl.tensor,
    a_L: tl.tensor,
    b_O: tl.tensor,
    a_step: tl.tensor,
    b_step: tl.tensor,
    length: tl.constexpr,
    rows: tl.tensor,
    columns: tl.tensor,
    STEP: tl.constexpr,
    WIDE: tl.constexpr,
) -> tl.tensor:
    """`sum_LO` + a b, over `length`, from where their rows and columns begin."""
    for start in range(0, length, STEP):
        at = start + tl.arange(0, STEP)
        a = tl.load(a_L[:, None] + at[None, :] * a_step, mask=rows[:, None] & (at < length)[None, :], other=0.0)
        b = tl.load(b_O[None, :] + at[:, None] * b_step, mask=(at < length)[:, None] & columns[None, :], other=0.0)
        b = b.to(a.dtype)
        if WIDE:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        sum_LO = tl.dot(a, b, sum_LO, input_precision="ieee")
    return sum_LO


@kernel
def _two_products(
    a_NLI: tl.tensor,
    b_IY: tl.tensor,
    m_NLM: tl.tensor,
    d_NKQO: tl.tensor,
    bias_Y: tl.tensor,
    plus_RY: tl.tensor,
    y_RY: tl.tensor,
    times: tl.tensor,
    length: tl.tensor,
    inputs: tl.constexpr,
    modules: tl.tensor,
    outputs: tl.tensor,
    rank: tl.constexpr,
    a_n: tl.tensor,
    a_l: tl.tensor,
    a_i: tl.tensor,
    b_i: tl.tensor,
    b_y: tl.tensor,
    d_n: tl.tensor,
    d_k: tl.tensor,
    d_q: tl.tensor,
    d_o: tl.tensor,
    plus_r: tl.tensor,
    plus_y: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    STEP_Q: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """`times` · (a b + m d + bias) + plus, of one module's columns and one network's rows."""
    n = tl.program_id(2).to(tl.int64)
    across = tl.cdiv(outputs, COLUMNS)
    k = tl.program_id(0) // across
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    rows, columns = row < length, column < outputs
    inside = rows[:, None] & columns[None, :]
    row = row.to(tl.int64)
    place = n * length + row
    y = k * outputs + column
    a_L = a_NLI + n * a_n + row * a_l
    b_O = b_IY + y.to(tl.int64) * b_y
    m_L = m_NLM + (place * modules + k) * rank
    d_O = d_NKQO + n * d_n + k * d_k + column * d_o
    sum_LO = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    sum_LO = _add_product(sum_LO, a_L, b_O, a_i, b_i, inputs, rows, columns, STEP, WIDE)
    sum_LO = _add_product(sum_LO, m_L, d_O, 1, d_q, rank, rows, columns, STEP_Q, WIDE)
    if bias_Y is not None:
        sum_LO += tl.load(bias_Y + y, mask=columns, other=0.0).to(tl.float32)[None, :]
    sum_LO = sum_LO * times
    if plus_RY is not None:
        plus = plus_RY + place[:, None] * plus_r + y[None, :] * plus_y
        sum_LO += tl.load(plus, mask=inside, other=0.0).to(tl.float32)
    into = y_RY + place[:, None] * modules * outputs + y[None, :]
    tl.store(into, sum_LO.to(y_RY.dtype.element_ty), mask=inside)


def lora_linear_forward(
    x_NLI: Tensor,
    weight_YI: Tensor,
    middle_NLM: Tensor,
    up_KNOQ: Tensor,
    bias_Y: Tensor | None = None,
    plus_RY: Tensor | None = None,
    times: float = 1.0,
) -> Tensor:
    """`times` · (x Wᵀ + b + m upᵀ), and `plus_RY`, by a kernel: (R, Y). All but m may be in any memory order."""
    return _launch(x_NLI, weight_YI.t(), middle_NLM, up_KNOQ.permute(1, 0, 3, 2), bias_Y, plus_RY, times)


def lora_linear_backward(
    dy_RY: Tensor, weight_YI: Tensor, dmiddle_NLM: Tensor, down_NMI: Tensor, plus_RI: Tensor | None = None
) -> Tensor:
    """The gradient of x, and `plus_RI`, by a kernel: (R, I). All but dm may be in any memory order."""
    dy_NLY = dy_RY.view(*dmiddle_NLM.shape[:2], -1)
    return _launch(dy_NLY, weight_YI, dmiddle_NLM, down_NMI[:, None], None, plus_RI, 1.0)


def _launch(
    a_NLI: Tensor,
    b_IY: Tensor,
    m_NLM: Tensor,
    d_NKQO: Tensor,
    bias_Y: Tensor | None,
    plus_RY: Tensor | None,
    times: float,
) -> Tensor:
    assert m_NLM.is_contiguous()
    networks, length, inputs = a_NLI.shape
    _, modules, rank, outputs = d_NKQO.shape
    rows, columns, step, warps = _tile(networks, length, modules, outputs)
    y_RY = a_NLI.new_empty(networks * length, modules * outputs)
    _two_products[modules * blocks(outputs, columns), blocks(length, rows), networks](
        a_NLI,
        b_IY,
        m_NLM,
        d_NKQO,
        bias_Y,
        plus_RY,
        y_RY,
        times,
        length,
        inputs,
        modules,
        outputs,
        rank,
        *a_NLI.stride(),
        *b_IY.stride(),
        *d_NKQO.stride(),
        *((0, 0) if plus_RY is None else plus_RY.stride()),
        rows,
        columns,
        step,
        min(step, max(16, gate.power_of_two(rank))),  # a dot takes 16 at least
        a_NLI.device.type == "cpu",  # the interpreter is wrong about bfloat16, and slow in float16
        num_warps=warps,
    )
    return y_RY


def _tile(networks: int, length: int, modules: int, outputs: int) -> tuple[int, int, int, int]:
    for tile in TILES:
        if networks * blocks(length, tile[0]) * modules * blocks(outputs, tile[1]) >= PROGRAMS:
            return tile
    return TILES[-1]


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NLI: Tensor, *others: Tensor | None) -> Tensor:
        weight_YI, down_NMI, up_KNOQ, scale_N, bias_Y, plus_NLY = others
        assert weight_YI is not None
        assert down_NMI is not None
        assert up_KNOQ is not None
        assert scale_N is not None
        scale_N11 = scale_N.to(x_NLI.dtype)[:, None, None]
        middle_NLM = torch.bmm(x_NLI, down_NMI.to(x_NLI.dtype).mT).mul_(scale_N11)
        ctx.save_for_backward(x_NLI, weight_YI, down_NMI, up_KNOQ, scale_N11, middle_NLM)
        plus_RY = None if plus_NLY is None else plus_NLY.flatten(0, 1)
        y_RY = lora_linear_forward(x_NLI, weight_YI, middle_NLM, up_KNOQ, bias_Y, plus_RY)
        return y_RY.view(*x_NLI.shape[:2], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy_NLY,) = grads
        x_NLI, weight_YI, down_NMI, up_KNOQ, scale_N11, middle_NLM = ctx.saved_tensors
        wanted: tuple[bool, ...] = ctx.needs_input_grad
        modules = list(zip(dy_NLY.chunk(len(up_KNOQ), 2), up_KNOQ, middle_NLM.chunk(len(up_KNOQ), 2), strict=True))
        dmiddles = [torch.bmm(dy_NLO, up_NOQ.to(dy_NLY.dtype)) for dy_NLO, up_NOQ, _ in modules]
        dmiddle_NLM = torch.cat(dmiddles, dim=2).mul_(scale_N11)
        dx_NLI = d_down_NMI = d_up_KNOQ = None
        if wanted[0]:
            dx_RI = lora_linear_backward(dy_NLY.flatten(0, 1), weight_YI, dmiddle_NLM, down_NMI)
            dx_NLI = dx_RI.view(x_NLI.shape)
        if wanted[2]:
            d_down_NMI = torch.bmm(dmiddle_NLM.mT, x_NLI).to(down_NMI.dtype)
        if wanted[3]:
            d_up_KNOQ = torch.stack([torch.bmm(dy.mT, middle) for dy, _, middle in modules]).to(up_KNOQ.dtype)
        return dx_NLI, None, d_down_NMI, d_up_KNOQ, None, None, dy_NLY if wanted[6] else None


def lora_linear(
    x_NLI: Tensor,
    weight_YI: Tensor,
    down_NMI: Tensor,
    up_KNOQ: Tensor,
    scale_N: Tensor,
    bias_Y: Tensor | None = None,
    plus_NLY: Tensor | None = None,
) -> Tensor:
    """`lora_linear_definition` by the kernel where it runs. W, b and s are constants."""
    if not gate.dots(x_NLI):
        return lora_linear_definition(x_NLI, weight_YI, down_NMI, up_KNOQ, scale_N, bias_Y, plus_NLY)
    result: Tensor = _LoRALinear.apply(x_NLI, weight_YI, down_NMI, up_KNOQ, scale_N, bias_Y, plus_NLY)  # type: ignore[no-untyped-call]
    return result

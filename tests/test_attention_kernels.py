"""The choice of attention's kernel, as far as a CPU has kernels to choose from; on a card, each against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorac.engine.progress import Progress
from lorac.errors import InputError
from lorac.kinds.training import attention_of
from lorac.train.fused import backends
from lorac.train.fused.backends import KERNELS, MATH_LIMIT, Choice, Size, agree, candidates, check, fastest, numbers
from tests.one_item import work

CPU = torch.device("cpu")
SMALL = Size(2, 2, 12, 5, 8, torch.float32, CPU)
SD15 = [(channels, side * side) for channels, side in ((40, 64), (80, 32), (160, 16), (160, 8))]


def formula(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, ...]:
    """(output, gradients of q, k and v) in float64, where the output's own is q."""
    leaves = q, k, v = [x.detach().double().requires_grad_() for x in (q, k, v)]
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    o = torch.softmax(scores, dim=-1) @ v
    return o.detach(), *torch.autograd.grad(o, leaves, q.detach())


def close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    for x, y in zip(found, expected, strict=True):
        assert (x.double() - y).abs().max() <= tolerance * y.abs().max()


@pytest.mark.parametrize("name", ["sdpa", "math"])
@pytest.mark.parametrize(
    "size",
    [SMALL, SMALL._replace(keys=12), SMALL._replace(keys=12, causal=True), SMALL._replace(batch=1, queries=1)],
)
def test_a_kernel_is_its_formula(name: str, size: Size) -> None:
    q, k, v = numbers(size)
    assert q.shape == (size.batch, 2, size.queries, 8) and k.shape == v.shape == (size.batch, 2, size.keys, 8)
    close(backends.results(name, q, k, v, size.causal), formula(q, k, v, size.causal), 1e-5)


def test_the_fastest_is_one_that_there_is() -> None:
    """This CPU has no cuDNN, and torch's memory-efficient kernel is for cards."""
    found = backends.timed(SMALL, KERNELS)
    assert {"sdpa", "math"} <= found.keys() <= {"sdpa", "math", "flash"}
    assert all(milliseconds > 0 for milliseconds in found.values())
    assert fastest(SMALL) in found


def test_one_that_is_wrong_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    size = SMALL._replace(heads=1)
    monkeypatch.setattr(
        backends, "KERNELS", {**KERNELS, "flash": lambda q, k, v, _: q * v.mean(), "math": _without_last}
    )
    assert backends.timed(size, KERNELS).keys() == {"sdpa"}


def _without_last(q: Tensor, k: Tensor, v: Tensor, _: bool) -> Tensor:
    """What some versions of cuDNN do with a number of keys that they do not like."""
    return torch.nn.functional.scaled_dot_product_attention(q, k[:, :, :-1], v[:, :, :-1])


def test_numbers_that_are_no_numbers_agree_with_nothing() -> None:
    ones = torch.ones(3)
    assert agree((ones,), (ones * 1.01,))
    assert not agree((ones,), (ones * 1.03,))
    assert not agree((ones,), (ones * torch.nan,))


def test_the_whole_softmax_is_tried_where_it_is_small() -> None:
    def tries(tokens: int, keys: int) -> bool:
        return "math" in candidates(Size(5, 8, tokens, keys, 160, torch.float16, CPU))

    assert 8 * 256 * 256 == MATH_LIMIT
    assert tries(256, 256) and tries(64, 231) and not tries(1024, 77) and not tries(4096, 4096)


def test_off_a_card_nothing_is_chosen() -> None:
    """Also where a step is followed without numbers."""
    for device in ("cpu", "meta"):
        choice = Choice("auto")
        q = torch.zeros(1, 2, 3, 4, device=device)
        assert choice.attend(q, q, q, False).shape == q.shape
        assert choice.chosen == {}


def test_xformers_is_refused_on_a_cpu_and_where_it_is_not_installed() -> None:
    for cuda, cause in ((False, "no attention for a CPU"), (True, "xformers")):
        if cuda and _has_xformers():
            continue
        with pytest.raises(InputError) as caught:
            check("xformers", cuda)
        (problem,) = caught.value.problems
        assert problem.where == "train.attention" and cause in problem.cause and "auto" in problem.remedy
    for name in ("auto", "sdpa", "math"):
        check(name, cuda=False)


def _has_xformers() -> bool:
    from importlib.util import find_spec

    return find_spec("xformers") is not None


def test_what_was_chosen_is_kept_with_the_figures_of_all_links() -> None:
    progress = Progress()
    for chosen, steps in (({"a": "flash"}, 3), ({"a": "flash", "b": "math"}, 4)):
        progress.measured({"steps": steps, "attention": chosen})
    assert progress.measures == {"steps": 7, "attention": {"a": "flash", "b": "math"}}


def test_the_hint_is_what_training_uses() -> None:
    assert attention_of(work({}, {}, hints={"attention": "math"})) == "math"
    assert attention_of(work({}, {})) == "auto"


@pytest.mark.gpu
@pytest.mark.parametrize(("channels", "tokens"), SD15)
@pytest.mark.parametrize("keys", [None, 77, 154, 231])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_kernel_of_a_card_is_the_formula(channels: int, tokens: int, keys: int | None, batch: int) -> None:
    size = Size(batch, 8, tokens, keys or tokens, channels, torch.float16, torch.device("cuda", 0))
    q, k, v = numbers(size)
    expected = formula(q[:, :1], k[:, :1], v[:, :1], False)  # one head: 134 MB of softmax in float64
    found = backends.timed(size, KERNELS)
    assert "sdpa" in found and fastest(size) in KERNELS
    for name in found:
        close(tuple(x[:, :1] for x in backends.results(name, q, k, v, False)), expected, 5e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 2])
def test_every_kernel_of_a_card_is_the_formula_of_a_text_encoder(batch: int) -> None:
    size = Size(batch, 12, 77, 77, 64, torch.float16, torch.device("cuda", 0), causal=True)
    q, k, v = numbers(size)
    found = backends.timed(size, KERNELS)
    assert "sdpa" in found
    for name in found:
        close(backends.results(name, q, k, v, True), formula(q, k, v, True), 5e-3)


@pytest.mark.gpu
def test_the_choice_is_made_once_and_said() -> None:
    choice = Choice("auto")
    q, k, v = numbers(Size(1, 8, 256, 77, 160, torch.float16, torch.device("cuda", 0)))
    first, second = (choice.attend(q, k, v, False) for _ in range(2))
    torch.testing.assert_close(first, second)
    assert list(choice.chosen) == ["256×77, 8·160, batch 1, float16"] and set(choice.chosen.values()) <= KERNELS.keys()

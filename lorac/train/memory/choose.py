"""Which way of training fits a budget, and what the others would cost.

No plan changes what is trained: results differ by rounding. So the quickest one that fits is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from lorac.train.memory.budget import shown
from lorac.train.memory.predict import Prediction, predict
from lorac.train.memory.run import TAPES, Plan, Run
from lorac.train.memory.work import work
from lorac.train.switches import Recompute

DIMS_TRIED = (0.75, 0.5, 0.25, 0.125)
PIXELS = 64
SMALLEST = 256
"""Below this resolution SD1.x draws nothing that can be recognised."""
SPARE = 0.05
"""Of what is taken where nothing is computed again, so much more must be free: of all plans it gains least for most."""
REMEDIES = 3
"""How many are named."""


@dataclass(frozen=True)
class Outcome:
    """A plan with what it is predicted to need."""

    plan: Plan
    prediction: Prediction


@dataclass(frozen=True)
class Choice:
    """`chosen` is the quickest plan within the budget, None if there is none; `others` from the quickest on."""

    chosen: Outcome | None
    others: Sequence[Outcome]
    budget: int | None

    @property
    def smallest(self) -> Outcome:
        outcomes = [*([self.chosen] if self.chosen else []), *self.others]
        return min(outcomes, key=lambda outcome: outcome.prediction.total)

    def times(self, outcome: Outcome) -> float:
        """How much longer than the quickest of all plans a step takes."""
        outcomes = [*([self.chosen] if self.chosen else []), *self.others]
        return outcome.prediction.work / min(each.prediction.work for each in outcomes)


@dataclass(frozen=True)
class Remedy:
    """A change of the recipe with which it fits, in words, and the peak then."""

    text: str
    total: int


def choose(run: Run, budget: int | None) -> Choice:
    """Without a budget, the quickest plan."""
    outcomes = sorted((Outcome(plan, predict(run, plan)) for plan in plans(run)), key=_rank)
    fitting = [outcome for outcome in outcomes if budget is None or _fits(run, outcome, budget)]
    chosen = fitting[0] if fitting else None
    others = [outcome for outcome in outcomes if outcome is not chosen]
    if chosen and budget is not None:
        left = budget - chosen.prediction.total
        tapes = left if run.cuda else min(TAPES, left)
        chosen = replace(chosen, plan=replace(chosen.plan, tapes=tapes))
    return Choice(chosen, others, budget)


def holds(run: Run, budget: int | None, slower: float) -> bool:
    """Whether a plan fits that takes at most `slower` times as long as one that computes norms and activations again,
    at most."""
    works = {plan: work(run, plan) for plan in plans(run)}
    usual = min(cost for plan, cost in works.items() if plan.recompute >= Recompute.ELEMENTWISE)
    quick = (plan for plan, cost in works.items() if cost <= slower * usual)
    return budget is None or any(predict(run, plan).total <= budget for plan in quick)


def plans(run: Run) -> Iterator[Plan]:
    """All ways of doing a step: passes for each batch, what is computed again, and where a frozen text encoder is."""
    splits = [1]
    while splits[-1] < run.batch:
        splits.append(min(2 * splits[-1], run.batch))
    levels = list(Recompute)
    if not run.merged and not run.cuda:
        levels.remove(Recompute.NOTHING)  # what elementwise recomputing costs a CPU cannot be measured at this size
    away = [False, True] if run.cuda and not run.text else [False]
    yield from (Plan(*way) for way in product(splits, levels, away))


def refusal(run: Run, choice: Choice) -> tuple[str, str]:
    """Cause and remedy, for a choice in which no plan fits."""
    assert choice.budget is not None
    least, fixed = choice.smallest.prediction, "CUDA and its libraries" if run.cuda else "Python and torch"
    cause = f"training needs {shown(least.total)} at least, {shown(least.context)} of it for {fixed}"
    cause += f", and may take {shown(choice.budget)}"
    found = [f"{remedy.text} ({shown(remedy.total)})" for remedy in remedies(run, choice.budget)]
    enough = f"give --budget {-(-least.total // 2**20)}MiB or more{', if the card has it' if run.cuda else ''}"
    return cause, f"set {', or '.join(found)}; or {enough}" if found else enough


def remedies(run: Run, budget: int) -> list[Remedy]:
    """The nearest settings that fit: each is the smallest change of its kind that is enough."""
    found = (_first(run, budget, changes) for changes in (_optimiser, _targets, _dims, _resolutions))
    return [remedy for remedy in found if remedy is not None][:REMEDIES]


def _first(run: Run, budget: int, changes: Callable[[Run], Iterator[tuple[str, Run]]]) -> Remedy | None:
    for text, changed in changes(run):
        chosen = choose(changed, budget).chosen
        if chosen is not None:
            return Remedy(text, chosen.prediction.total)
    return None


def _optimiser(run: Run) -> Iterator[tuple[str, Run]]:
    if run.optimizers == {"adamw"} and run.cuda:
        yield 'train.optimizer = "adamw8bit"', replace(run, optimizers=frozenset({"adamw8bit"}))


def _targets(run: Run) -> Iterator[tuple[str, Run]]:
    if run.text and any(not path.startswith("text_model.") for path in run.networks[0]):
        networks = tuple({p: r for p, r in n.items() if not p.startswith("text_model.")} for n in run.networks)
        yield 'network.targets = ["unet"]', replace(run, networks=networks)


def _dims(run: Run) -> Iterator[tuple[str, Run]]:
    """One rank for all modules, as far as there is one."""
    ranks = {rank for network in run.networks for rank in network.values()}
    if len(ranks) == 1:
        (rank,) = ranks
        for dim in (int(rank * share) for share in DIMS_TRIED if rank * share >= 1):
            yield f"network.dim = {dim}", replace(run, networks=tuple(dict.fromkeys(n, dim) for n in run.networks))


def _resolutions(run: Run) -> Iterator[tuple[str, Run]]:
    side = run.resolution - PIXELS
    while side >= min(SMALLEST, run.resolution // 2):
        share = side / run.resolution
        height, width = (max(8, round(size * share / 8) * 8) for size in (run.height, run.width))
        yield f"train.resolution = {side}", replace(run, height=height, width=width, resolution=side)
        side -= PIXELS


def _fits(run: Run, outcome: Outcome, budget: int) -> bool:
    spare = run.cuda and not run.merged and outcome.plan.recompute == Recompute.NOTHING
    return outcome.prediction.total * (1 + SPARE * spare) <= budget


def _rank(outcome: Outcome) -> tuple[float, int]:
    return outcome.prediction.work, outcome.prediction.total

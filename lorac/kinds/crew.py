"""Several LoRAs that are trained together by the kind `train`: who begins, goes on, fails, and leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from lorac.engine.protocol import Made, Next, Work
from lorac.errors import InputError, LoracError
from lorac.kinds.memory import planned
from lorac.kinds.train import load_base, new_run
from lorac.kinds.training import Run, trainer_of
from lorac.store.blobs import BlobMissing

if TYPE_CHECKING:
    from lorac.train.step import Trainer

Report: TypeAlias = "tuple[int, Made | BaseException]"
"""What a run made, or what stopped it, by its number in the gang."""


class Crew:
    """The runs that are left. When one leaves, the others go on with a trainer of their own, from where they are.

    When memory runs out in the smallest passes, fewer are trained at a time, the others after them.
    """

    def __init__(self, works: Sequence[Work], more: Next) -> None:
        from lorac.sd.device import pick

        self._works, self._more, self._device = works, more, pick()
        self._runs: dict[int, Run] = {}
        self._reports: list[Report] = []
        self._left = self._stepping = False
        self._at_once = len(works)

    def run(self) -> Iterator[Report]:
        from lorac.train.survive import give_back, is_out_of_memory

        for work in self._works:
            work.session.clear()
        self._each(range(len(self._works)), lambda number: self._runs.update({number: new_run(self._works[number])}))
        yield from self._told()
        while self._runs:
            self._stop_if_cancelled()
            active, too_many = list(self._runs)[: self._at_once], False
            try:
                yield from self._until_one_leaves(active)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                too_many = True
            if too_many:  # here the error and its traceback are gone, whose frames hold the tensors
                self._fewer(active)
            give_back()  # models, networks and their trainer hold each other
            yield from self._told()

    def _stop_if_cancelled(self) -> None:
        """Before the base is loaded again."""
        from lorac.train.loop import interrupted

        if self._works[0].cancelled.is_set():
            self._each(self._runs, lambda number: self._runs[number].save())
            raise interrupted()

    def _until_one_leaves(self, active: Sequence[int]) -> Iterator[Report]:
        self._left = self._stepping = False
        try:
            plan = planned([self._runs[number].work for number in active])
        except InputError as error:  # no plan fits
            self._fewer(active, error)
            return
        models = load_base(self._works[0], self._device, plan)
        self._each(active, lambda number: self._runs[number].recruit(*models))
        yield from self._told()
        active = self._left_of(active)
        if not active:
            return
        self._left = False
        trainer = trainer_of([self._runs[number] for number in active], *models, plan)
        yield from self._train(active, trainer)
        self._each(self._left_of(active), lambda number: self._runs[number].pause())
        yield from self._told()

    def _train(self, active: Sequence[int], trainer: Trainer) -> Iterator[Report]:
        """Until one leaves. `active` is in the order of the trainer's members."""
        from lorac.train.gang import advance

        legs = dict.fromkeys(active)
        begun: Iterable[int] = active
        while True:
            self._each(begun, lambda number: legs.update({number: self._runs[number].leg()}))
            if not self._left:
                self._stepping = True
                ended, failed = advance(trainer, {n: leg for n, leg in legs.items() if leg}, self._works[0].cancelled)
                self._stepping = False
                for number, error in failed.items():
                    self._leave(number, error)
                self._each(ended, lambda number: self._reports.append((number, self._runs[number].end(self._device))))
                yield from self._told()
                begun = self._next_links([number for number in ended if number in self._runs])
            yield from self._told()
            if self._left:
                return

    def _next_links(self, numbers: Sequence[int]) -> list[int]:
        """Let these runs begin their next links; returns who has one."""
        following = dict(zip(numbers, self._more(numbers), strict=True))
        for number, work in following.items():
            if work is None:
                del self._runs[number]
                self._left = True
            else:
                self._each([number], lambda number, work=work: self._runs[number].begin(work))  # type: ignore[misc]
        return self._left_of(numbers)

    def _fewer(self, active: Sequence[int], refusal: InputError | None = None) -> None:
        """Memory cannot hold all of these at once. Nobody knows how far each of them came in the step that failed, so
        they go back to their last snapshots. `refusal` is the planner's word for it."""
        from lorac.train.gang import no_memory

        if len(active) == 1:
            self._leave(active[0], refusal or no_memory(self._stepping))
            return
        self._at_once = -(-len(active) // 2)
        cause = "memory does not hold" if refusal else "memory ran out with"
        self._works[0].warn(
            f"{cause} {len(active)} LoRAs at once; from now on {self._at_once} at a time, with the same result"
        )
        self._each(self._left_of(active), lambda number: self._runs[number].restart())

    def _left_of(self, numbers: Iterable[int]) -> list[int]:
        return [number for number in numbers if number in self._runs]

    def _each(self, numbers: Iterable[int], action: Callable[[int], None]) -> None:
        """Do something for these runs; who fails leaves, the others do not notice."""
        for number in list(numbers):
            try:
                action(number)
            except (LoracError, BlobMissing) as error:
                self._leave(number, error)

    def _leave(self, number: int, error: Exception) -> None:
        self._runs.pop(number, None)
        self._reports.append((number, error.bare() if isinstance(error, LoracError) else error))
        self._left = True

    def _told(self) -> Iterator[Report]:
        """What has not been reported yet."""
        reports, self._reports = self._reports, []
        yield from reports

"""Several LoRAs that are trained together by the kind `train`: who begins, goes on, fails, and leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

from lorac.engine.protocol import Made, Next, Work
from lorac.errors import LoracError
from lorac.kinds.train import load_base, new_run
from lorac.kinds.training import Run, trainer_of
from lorac.store.blobs import BlobMissing

Report: TypeAlias = "tuple[int, Made | BaseException]"
"""What a run made, or what stopped it, by its number in the gang."""


class Crew:
    """The runs that are left. When one leaves, the others go on with a trainer of their own, from where they are."""

    def __init__(self, works: Sequence[Work], more: Next) -> None:
        from lorac.sd.device import pick

        self._works, self._more, self._device = works, more, pick()
        self._runs: dict[int, Run] = {}
        self._reports: list[Report] = []
        self._left = False

    def run(self) -> Iterator[Report]:
        for work in self._works:
            work.session.clear()
        self._each(range(len(self._works)), lambda number: self._runs.update({number: new_run(self._works[number])}))
        yield from self._told()
        while self._runs:
            yield from self._until_one_leaves()

    def _until_one_leaves(self) -> Iterator[Report]:
        from lorac.train.gang import advance

        models = load_base(self._works[0], self._device)
        self._each(self._runs, lambda number: self._runs[number].recruit(*models))
        yield from self._told()
        if not self._runs:
            return
        self._left = False
        trainer = trainer_of(list(self._runs.values()), *models)
        legs = dict.fromkeys(self._runs)  # in the order of the trainer's members
        begun: Iterable[int] = list(self._runs)
        while True:
            self._each(begun, lambda number: legs.update({number: self._runs[number].leg()}))
            if not self._left:
                ended, failed = advance(trainer, {n: leg for n, leg in legs.items() if leg}, self._works[0].cancelled)
                for number, error in failed.items():
                    self._leave(number, error)
                self._each(ended, lambda number: self._reports.append((number, self._runs[number].end(self._device))))
                yield from self._told()
                begun = self._next_links([number for number in ended if number in self._runs])
            yield from self._told()
            if self._left:
                break
        self._each(self._runs, lambda number: self._runs[number].pause())
        yield from self._told()

    def _next_links(self, numbers: Sequence[int]) -> list[int]:
        """Let these runs begin their next links; returns who has one."""
        following = dict(zip(numbers, self._more(numbers), strict=True))
        for number, work in following.items():
            if work is None:
                del self._runs[number]
                self._left = True
            else:
                self._each([number], lambda number, work=work: self._runs[number].begin(work))  # type: ignore[misc]
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
        self._reports.append((number, error))
        self._left = True

    def _told(self) -> Iterator[Report]:
        """What has not been reported yet."""
        reports, self._reports = self._reports, []
        yield from reports

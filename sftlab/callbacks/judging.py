"""Scores whose answers are there and whose judge is slow: graded while the next stage trains.

    begin   the answers lie in their files; what is owed stands in judging.json of the run
            a thread grades one task after another
    take    between two steps: what is graded becomes scores, and leaves judging.json

A killed run finds there what it owes, and grades the answers that it has. The scores of the last stage are waited for
before its checkpoint has the stage's name, so that nothing is owed by a run that has ended.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

from sftlab.evaluate.run import Graded
from sftlab.files import write_text
from sftlab.results.row import checked
from sftlab.run.folder import JUDGING_FILE, owed_scores
from sftlab.tasks.task import Answer, Problem, Sampling


@dataclass(frozen=True)
class Place:
    """What a score is a score of.

    Attributes:
        step: Optimizer steps of the whole run.
        stage: Its name.
        ability: Its name.
        inside: Whether the stage was not at its end.
    """

    step: int
    stage: str
    ability: str
    inside: bool


class Judging:
    """The scores that a run owes; one thread grades them.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._owed: dict[Place, Future[Graded]] = {}
        self._asked: SimpleQueue[tuple[Future[Graded], Callable[[], Graded]]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        """How many are owed."""
        return len(self._owed)

    def begin(self, place: Place, grade: Callable[[], Graded]) -> None:
        """Grade behind training; of a place that is owed already, its new answers."""
        self._owed[place] = Future()
        self.note()
        self._asked.put((self._owed[place], grade))
        if self._thread is None:  # a daemon: a run that is stopped does not wait for a judge
            self._thread = threading.Thread(target=self._work, daemon=True, name="judging")
            self._thread.start()

    def _work(self) -> None:
        while True:
            graded, grade = self._asked.get()
            try:
                graded.set_result(grade())
            except BaseException as error:  # raised again where the result is taken
                graded.set_exception(error)

    def take(self, wait: bool = False) -> Iterator[tuple[Place, Graded]]:
        """What is graded; it is owed until the caller has dealt with it and asks for the next.

        Args:
            wait: For all that is owed.

        Raises:
            ValueError: A task could not be graded; it is still owed.
        """
        for place, graded in list(self._owed.items()):
            if not wait and not graded.done():
                return
            yield place, graded.result()
            if self._owed[place] is graded:
                del self._owed[place]
            self.note()

    def note(self) -> None:
        """Write down what is owed, for the case that the run is killed."""
        path = self._folder / JUDGING_FILE
        if self._owed:
            write_text(path, json.dumps([asdict(place) for place in self._owed], indent=1))
        else:
            path.unlink(missing_ok=True)


def owed_before(folder: Path, step: int) -> list[Place]:
    """What a killed run of this folder owes for the steps that are not trained again.

    Raises:
        ValueError: The note is damaged.
    """
    places = [checked(Place, entry, str(folder / JUDGING_FILE)) for entry in owed_scores(folder)]
    return [place for place in places if place.step <= step]


class Nobody:
    """In the place of a model that is gone: what it has not answered stays without an answer."""

    def answer(self, problems: Sequence[Problem], sampling: Sampling) -> Iterator[list[Answer]]:
        """Say so, for each sample of each problem."""
        why = "no answer when the run was stopped"
        for problem in problems:
            yield [Answer(problem.uid, sample, (), (), missing=why) for sample in range(sampling.num_samples)]

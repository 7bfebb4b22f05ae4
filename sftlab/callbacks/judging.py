"""Background grading: a slow judge grades the answers of one stage while the next one trains.

    begin   the answers are in their files; judging.json in the run's folder lists what is not graded yet
            a thread grades one task after another
    take    between two steps: graded answers become scores and are removed from judging.json

A killed run that is resumed reads judging.json and grades the answers that it already has. The run waits for the last
stage's scores before the stage's checkpoint gets its final name, so a run that has ended has all its scores.
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
    """What a score belongs to.

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
    """The scores that a run still has to compute, graded by one thread.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._owed: dict[Place, Future[Graded]] = {}
        self._asked: SimpleQueue[tuple[Future[Graded], Callable[[], Graded]]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        """Return the number of scores that are not done."""
        return len(self._owed)

    def begin(self, place: Place, grade: Callable[[], Graded]) -> None:
        """Start grading in the background; if the place is already being graded, grade its new answers."""
        self._owed[place] = Future()
        self.note()
        self._asked.put((self._owed[place], grade))
        if self._thread is None:  # a daemon: a run that stops does not wait for a judge
            self._thread = threading.Thread(target=self._work, daemon=True, name="judging")
            self._thread.start()

    def _work(self) -> None:
        while True:
            graded, grade = self._asked.get()
            try:
                graded.set_result(grade())
            except BaseException as error:  # raised again when the result is taken
                graded.set_exception(error)

    def take(self, wait: bool = False) -> Iterator[tuple[Place, Graded]]:
        """Yield what is graded; each stays noted as not done until the caller asks for the next.

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
        """Write down what is not graded yet, in case the run is killed."""
        path = self._folder / JUDGING_FILE
        if self._owed:
            write_text(path, json.dumps([asdict(place) for place in self._owed], indent=1))
        else:
            path.unlink(missing_ok=True)


def owed_before(folder: Path, step: int) -> list[Place]:
    """Return what a killed run of this folder had not graded, for the steps that are not trained again.

    Raises:
        ValueError: The note is damaged.
    """
    places = [checked(Place, entry, str(folder / JUDGING_FILE)) for entry in owed_scores(folder)]
    return [place for place in places if place.step <= step]


class Nobody:
    """Stands in for a model that no longer exists: what it has not answered stays unanswered."""

    def answer(self, problems: Sequence[Problem], sampling: Sampling) -> Iterator[list[Answer]]:
        """Return an error for each sample of each problem."""
        why = "no answer when the run was stopped"
        for problem in problems:
            yield [Answer(problem.uid, sample, (), (), missing=why) for sample in range(sampling.num_samples)]

"""Tasks of EleutherAI's lm-evaluation-harness by name, through its own API: ``pip install 'sftlab[lm-eval]'``."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from sftlab.bounds import within
from sftlab.results.score import Score
from sftlab.stats.interval import normal
from sftlab.tasks.task import ModelTask, Problem


class LMEval(ModelTask):
    """A task of the harness, measured on the model in this process; each of its metrics is a score.

    Args:
        task: Its name in the harness, such as ``arc_easy``, ``ifeval`` or ``mmlu``.
        num_fewshot: Number of examples before each question; by default the task's own.
        num_problems: Use the first this many of each of its parts; all by default.
        chat: Whether to use the template that the model was trained with.
        batch_size: Number of requests processed together.
        revision: Commit, branch or tag of the task's data set on the hub. Name a commit if scores must be reproducible:
            without one, the hub's current state is used.

    Raises:
        ValueError: A number is out of bounds.
    """

    name = "lm_eval"

    def __init__(
        self,
        task: str,
        num_fewshot: int | None = None,
        num_problems: int | None = None,
        chat: bool = True,
        batch_size: int = 8,
        revision: str | None = None,
    ) -> None:
        for key, value, least in (("num_fewshot", num_fewshot, 0), ("num_problems", num_problems, 1)):
            if value is not None:
                within(f"lm_eval.{key}", value, least, 10_000_000, is_whole=True)
        within("lm_eval.batch_size", batch_size, 1, 100_000, is_whole=True)
        self.name, self.task = f"lm_eval_{task}", task
        self.num_fewshot, self.num_problems, self.chat, self.batch_size = num_fewshot, num_problems, chat, batch_size
        self.revision = revision

    def problems(self) -> list[Problem]:
        """None.

        Raises:
            ValueError: The harness is not installed.
        """
        self._harness()
        return []

    def _harness(self) -> Any:
        try:
            return import_module("lm_eval")
        except ModuleNotFoundError as error:
            raise ValueError(f"{self.name}: {error}; install the harness: pip install 'sftlab[lm-eval]'") from None

    def grading(self) -> dict[str, Any]:
        """Return what the harness is asked."""
        asked = {"num_fewshot": self.num_fewshot, "num_problems": self.num_problems, "chat": self.chat}
        return {**asked, **({"revision": self.revision} if self.revision else {})}

    def measure(self, model: Any) -> list[Score]:
        """Return every metric of the harness; for a group, the group's own come first.

        Raises:
            ValueError: The model is behind a server, or the harness knows no such task, cannot run it or gives no
                number.
        """
        if not hasattr(model, "model"):
            raise ValueError(f"{self.name}: the harness needs the model itself, not a server")
        harness = self._harness()
        wrapped = import_module("lm_eval.models.huggingface").HFLM(
            pretrained=model.model, tokenizer=self._tokenizer(model.encoder), batch_size=self.batch_size
        )
        try:
            with _revision(self.revision):
                found = harness.simple_evaluate(
                    model=wrapped,
                    tasks=[self.task],
                    num_fewshot=self.num_fewshot,
                    limit=self.num_problems,
                    apply_chat_template=self.chat,
                )
        except KeyError as error:
            raise ValueError(f"{self.name}: the harness knows no task {error}") from None
        except (AssertionError, ValueError, OSError) as error:  # a data set that is not available, a prompt too long
            raise ValueError(f"{self.name}: the harness ended with {type(error).__name__}: {error}") from error
        scores = self._scores(found)
        if not scores:
            raise ValueError(f"{self.name}: the harness gave no number")
        return scores

    def _tokenizer(self, encoder: Any) -> Any:
        """Return a tokenizer for the harness, which modifies it, with the template and end of turn used in training."""
        tokenizer = copy.deepcopy(encoder.tokenizer)
        if self.chat:
            tokenizer.chat_template = encoder.template.chat_template()
            tokenizer.eos_token = encoder.template.end_of_turn
        return tokenizer

    def _scores(self, found: dict[str, Any]) -> list[Score]:
        scores = []
        parts = sorted(found["results"], key=lambda part: part != self.task)
        for part in parts:
            metrics = found["results"][part]
            count = int(found.get("n-samples", {}).get(part, {}).get("effective", 0))
            for key, value in metrics.items():
                metric, _, rule = key.partition(",")
                if metric.endswith("_stderr") or isinstance(value, bool) or not isinstance(value, int | float):
                    continue
                if metric in ("alias", "sample_len"):
                    continue
                error = metrics.get(f"{metric}_stderr,{rule}")
                error = float(error) if isinstance(error, int | float) else math.nan
                shown = metric if part == self.task else f"{part}/{metric}"
                name = f"{shown}/{rule}" if rule not in ("", "none") else shown
                scores.append(Score(self.name, name, count, float(value), error, *normal(float(value), error)))
        return scores


@contextmanager
def _revision(revision: str | None) -> Iterator[None]:
    """Make the harness load data sets of this revision; its tasks have no option for it that keeps their own."""
    if revision is None:
        yield
        return
    datasets: Any = import_module("datasets")
    load = datasets.load_dataset
    datasets.load_dataset = lambda *args, **options: load(*args, **{"revision": revision, **options})
    try:
        yield
    finally:
        datasets.load_dataset = load

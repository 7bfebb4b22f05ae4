"""Tasks of EleutherAI's lm-evaluation-harness by name, through its own API: ``pip install lm-eval``."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

from sftlab.bounds import within
from sftlab.results.score import Score
from sftlab.stats.interval import normal
from sftlab.tasks.task import ModelTask, Problem


class LMEval(ModelTask):
    """A task of the harness, measured on the model in this process; every metric that it gives is a score.

    Args:
        task: Its name in the harness, such as ``arc_easy``, ``ifeval`` or ``mmlu``.
        num_fewshot: Examples before each question; the task's own number when left out.
        num_problems: The first so many of each of its parts; all when left out.
        chat: Ask through the model's chat template.
        batch_size: Requests side by side.

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
    ) -> None:
        for key, value, least in (("num_fewshot", num_fewshot, 0), ("num_problems", num_problems, 1)):
            if value is not None:
                within(f"lm_eval.{key}", value, least, 10_000_000, is_whole=True)
        within("lm_eval.batch_size", batch_size, 1, 100_000, is_whole=True)
        self.name, self.task = f"lm_eval_{task}", task
        self.num_fewshot, self.num_problems, self.chat, self.batch_size = num_fewshot, num_problems, chat, batch_size

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
            raise ValueError(f"{self.name}: {error}; install the harness: pip install lm-eval") from None

    def grading(self) -> dict[str, Any]:
        """What the harness is asked."""
        return {"num_fewshot": self.num_fewshot, "num_problems": self.num_problems, "chat": self.chat}

    def measure(self, model: Any) -> list[Score]:
        """Every metric of the harness; of a group, the group's own come first.

        Raises:
            ValueError: The model is behind a server, or the harness knows no such task or gives no number.
        """
        if not hasattr(model, "model"):
            raise ValueError(f"{self.name}: the harness needs the model itself, not a server")
        harness = self._harness()
        wrapped = import_module("lm_eval.models.huggingface").HFLM(
            pretrained=model.model, tokenizer=model.encoder.tokenizer, batch_size=self.batch_size
        )
        try:
            found = harness.simple_evaluate(
                model=wrapped,
                tasks=[self.task],
                num_fewshot=self.num_fewshot,
                limit=self.num_problems,
                apply_chat_template=self.chat,
            )
        except KeyError as error:
            raise ValueError(f"{self.name}: the harness knows no task {error}") from None
        scores = self._scores(found)
        if not scores:
            raise ValueError(f"{self.name}: the harness gave no number")
        return scores

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

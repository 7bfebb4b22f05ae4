"""Runs and studies in Python: their folders as data frames, models and figures, whether finished or not.

run = sftlab.Run("dmt")            by name, or by its folder lightning_logs/dmt
run.scores, run.losses             what each stage can do
run.metrics.filter(like="loss")    by optimizer step
run.model("specialised")           the exported stage
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sftlab.evaluate.run import read_scores
from sftlab.files import read_jsonl
from sftlab.plan.ledger import LedgerRow
from sftlab.results.score import ScoreRow
from sftlab.run.folder import LOGS, state_of
from sftlab.run.opening import finished_stages, ledger_rows
from sftlab.run.results import RunStage, find_stage, losses_by_stage, metric_lines, stage_name

_OF_STUDY = ("study.json", "stages.json", "configs")  # some of the entries of its folder

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class Run:
    """A run and the results in its folder.

    Args:
        folder: Its folder, or its name in lightning_logs/.

    Attributes:
        folder: The run's folder.

    Raises:
        ValueError: There is no such run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = find_stage(str(folder)).run

    def __repr__(self) -> str:
        """Show name, state and stages."""
        return f"Run({str(self.folder)!r}: {self.state}, stages {', '.join(self.stages) or 'none yet'})"

    @property
    def state(self) -> str:
        """The state of the run: running, finished, stopped or unknown."""
        return state_of(self.folder).status

    @property
    def stages(self) -> list[str]:
        """Names of the finished stages, in order."""
        return [stage_name(path) for path in finished_stages(self.folder)]

    @property
    def config(self) -> dict[str, Any]:
        """The config of the run; empty if it was started from Python objects."""
        import yaml

        path = self.folder / "config.yaml"
        return dict(yaml.safe_load(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    @property
    def scores(self) -> pd.DataFrame:
        """The scores, one per row: ability, task, metric, stage, step, value with its interval."""
        import pandas as pd

        rows = [asdict(row) for row in read_scores(self.folder / "scores.jsonl")]
        return pd.DataFrame(rows, columns=[field.name for field in fields(ScoreRow)])

    @property
    def metrics(self) -> pd.DataFrame:
        """The logged metrics: a row per optimizer step, a column per metric."""
        import pandas as pd

        steps: dict[int, dict[str, Any]] = {}
        for line in metric_lines(self.folder):
            steps.setdefault(line.pop("step") or 0, {}).update(line)
        frame = pd.DataFrame.from_dict(steps, orient="index").sort_index()
        return frame.rename_axis("step")

    @property
    def losses(self) -> pd.DataFrame:
        """Loss on held-out examples: a row per stage, a column per ability."""
        import pandas as pd

        return pd.DataFrame.from_dict(losses_by_stage(self.folder), orient="index").rename_axis("stage")

    @property
    def ledger(self) -> pd.DataFrame:
        """What was trained: a row per stage and ability, with examples, tokens, epochs and shares."""
        import pandas as pd

        rows = [asdict(row) for row in ledger_rows(self.folder)]
        return pd.DataFrame(rows, columns=[field.name for field in fields(LedgerRow)])

    def export(self, stage: str = "") -> Path:
        """The Hugging Face folder of a stage, by default the last one.

        Raises:
            ValueError: The stage is not finished.
        """
        return RunStage(self.folder, stage).export

    def model(self, stage: str = "", **options: Any) -> PreTrainedModel:
        """The model after a stage, by default the last one; ``options`` are passed to ``from_pretrained``."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.export(stage), **options)  # type: ignore[no-any-return]

    def tokenizer(self, stage: str = "") -> PreTrainedTokenizerFast:
        """The tokenizer of a stage, with the chat template of its training."""
        from transformers import AutoTokenizer

        return cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(self.export(stage)))

    def plot_loss(self, kind: str = "train", ax: Axes | None = None) -> Axes:
        """Plot the loss of each ability over optimizer steps, with the ends of stages.

        Args:
            kind: ``train``, or ``val`` for held-out examples.
            ax: The axes to draw into; by default those of a new figure.

        Raises:
            ValueError: There is nothing to draw, or matplotlib is missing.
        """
        try:
            import matplotlib.pyplot as plt
        except ImportError:
            raise ValueError("plot_loss needs matplotlib: pip install sftlab[studies]") from None
        metrics, start = self.metrics, f"{kind}/loss/"
        columns = [name for name in metrics.columns if name.startswith(start)]
        if not columns:
            raise ValueError(f"{self.folder}: it has logged no {start}*; kind is train or val")
        ax = ax if ax is not None else plt.subplots(figsize=(7, 3.5), layout="constrained")[1]
        for name in columns:
            known = metrics[name].dropna()
            ax.plot(known.index, known, label=name.removeprefix(start), marker="o" if kind == "val" else "")
        if "stage/seconds" in metrics:
            for step in metrics["stage/seconds"].dropna().index[:-1]:
                ax.axvline(step, color="0.7", linewidth=1, linestyle=":")
        what = "held-out" if kind == "val" else "training"
        ax.set(xlabel="optimizer step", ylabel=f"{what} loss", title=self.folder.name)
        ax.legend()
        return ax


class StudyRuns:
    """The folder of a study or a search: its runs, and their results as data frames.

    Args:
        folder: Its folder, or its name in lightning_logs/.

    Attributes:
        folder: Where everything is.

    Raises:
        ValueError: There is no such study.
    """

    def __init__(self, folder: str | Path) -> None:
        places = [
            place for place in (Path(folder), LOGS / folder) if any((place / name).exists() for name in _OF_STUDY)
        ]
        if not places:
            known = ", ".join(sorted({path.parent.name for name in _OF_STUDY for path in LOGS.glob(f"*/{name}")}))
            raise ValueError(f"{folder}: no study of that name in {LOGS}/; there are {known or 'none'}")
        self.folder = places[0]

    def __repr__(self) -> str:
        """Show its folder and number of runs."""
        return f"StudyRuns({str(self.folder)!r}: {len(self.runs)} runs)"

    @property
    def runs(self) -> dict[str, Run]:
        """The runs that have begun, by name."""
        from sftlab.run.results import runs_in

        return {run.name: Run(run) for run in runs_in(self.folder / "runs")}

    @property
    def results(self) -> pd.DataFrame:
        """Scores and held-out losses, one per row, after each stage of each run; factors are columns."""
        import pandas as pd

        rows = read_jsonl(self.folder / "results.jsonl")
        return pd.DataFrame([{**row.pop("factors", {}), **row} for row in rows])

    @property
    def costs(self) -> pd.DataFrame:
        """Costs, a row per stage of each run: tokens, seconds, and whether another run trained it."""
        import pandas as pd

        rows = read_jsonl(self.folder / "costs.jsonl")
        about = [{k: v for k, v in row.items() if k not in ("stages", "factors")} | row["factors"] for row in rows]
        return pd.DataFrame(
            [{**one, "stage": stage.pop("name"), **stage} for one, row in zip(about, rows, strict=True)
             for stage in row["stages"]]
        )  # fmt: skip

    @property
    def decision(self) -> str:
        """The decision of a search as text; empty before its end, and for a study."""
        path = self.folder / "search.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return str(found.get("decision", "")).replace("**", "")

    @property
    def report(self) -> Path:
        """The page of its report."""
        return self.folder / "report" / "index.html"

"""For DMT runs on the lab: the scores of other values of k, measured earlier under the same settings.

The table ships with how it was made. It is shown only where the run has its settings, all but k and the seeds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from sftlab.callbacks.context import RunContext
from sftlab.data.ability import PlannedData
from sftlab.data.source import LabSource
from sftlab.lab.abilities import LAB_VERSION
from sftlab.model.module import SFTModule
from sftlab.plan.stage import Stage
from sftlab.run.settings import is_without, module_settings

MEASURED = Path(__file__).parents[1] / "lab" / "measured.json"
_OF_STAGES = ("lr_schedule", "optimizer", "warmup_steps")  # of the model, and not among what its weights begin with


def settings_of(data: PlannedData, module: SFTModule, stages: Sequence[Stage]) -> dict[str, Any] | None:
    """Return the settings that a table of k must share with a run; None unless it is plain DMT on generated data."""
    abilities = {}
    for name, ability in sorted(data.abilities.items()):
        if not isinstance(source := ability.source, LabSource) or source.exclude or ability.drop:
            return None
        dials = {dial: value for dial, value in source.options.to_dict().items() if dial != "seed"}
        shares = {"fraction": ability.fraction, "val_fraction": ability.val_fraction}
        abilities[name] = {"num_examples": source.num_examples, **shares, **dials}
    plain = [s for s in stages if s.epochs and s == Stage(s.name, s.fractions, epochs=s.epochs)]
    if len(plain) != 2 or len(stages) != 2:
        return None
    if module.path is None or not all(is_without(name, getattr(module, name)) for name in _OF_STAGES):
        return None
    if module_settings(module) != module_settings(SFTModule(module.path, weight_decay=module.weight_decay)):
        return None
    first, second = (stage.fractions for stage in stages)
    kept = sorted(set(second) - set(first))
    if {*first.values(), *(second[name] for name in kept)} != {1}:
        return None
    return {
        "lab": LAB_VERSION,
        "abilities": abilities,
        "stages": [[sorted(first), stages[0].epochs], [kept, stages[1].epochs]],
        **{name: getattr(module, name) for name in ("path", "learning_rate", "warmup_ratio", "weight_decay")},
        **{name: str(getattr(data, name)) for name in ("template", "max_length", "batch")},
        "policy": type(data.policy).__name__,
    }


def measured_table(context: RunContext) -> Table | None:
    """Return the shipped table if it was measured with the settings of this run."""
    stages = [planned.stage for planned in context.plan.stages]
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    if settings_of(context.data, context.module, stages) != measured["settings"]:
        return None
    seeds, problems = ", ".join(map(str, measured["seeds"])), measured["num_problems"]
    table = Table(
        title="Measured before with these settings (mean and 95 % interval over seeds)",
        caption=f"seeds {seeds}; {problems:,} problems of each ability a seed; {measured['made_by']}",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("")
    for ability in context.data.abilities:
        table.add_column(ability, justify="right")
    for name, scores in measured["scores"].items():
        cells = [scores[ability] for ability in context.data.abilities]
        table.add_row(name, *(f"{v:.1f}% ({max(low, 0):.0f}% to {min(high, 100):.0f}%)" for v, low, high in cells))
    return table

"""Which validated step's weights a stage ends with, and what that costs the other abilities."""

from __future__ import annotations

import json
from typing import Any

from sftlab.callbacks.context import RunContext
from sftlab.files import whole_file
from sftlab.model.snapshot import read_snapshot, remove_snapshots, write_snapshot
from sftlab.plan.plan import StagePlan
from sftlab.run.results import KEPT_FILE
from sftlab.screen import show

_FOLDER = "kept"


class BestKeeper:
    """Saves the weights with the lowest held-out loss of an ability and restores them at the stage's end.

    Args:
        context: The run.
        ability: Whose held-out loss chooses; None keeps nothing.
        is_inside: Whether stages are validated inside.

    Raises:
        ValueError: There is nothing to choose among, or to choose by.
    """

    def __init__(self, context: RunContext, ability: str | None, is_inside: bool) -> None:
        self._context, self._ability = context, ability
        self._best: dict[str, Any] | None = None  # step and losses
        self._saved: list[int] = []  # best steps of the last two checkpoints, whose snapshots are kept
        if ability is None:
            return
        known = context.data.val_abilities()
        if ability not in known:
            raise ValueError(
                f"schedule.keep_best: {ability!r} is not an ability with held-out examples, which val_fraction gives; "
                f"those are {known}"
            )
        if not is_inside:
            raise ValueError("schedule.keep_best chooses among validations inside stages: set val_every_n_steps too")

    def observe(self) -> None:
        """Compare the validation of this step with the best one."""
        context = self._context
        if self._ability is None:
            return
        losses, stage = dict(context.module.val_losses), context.stage
        if self._best is not None and self._best["step"] <= stage.first_step:
            self._best = None  # of the previous stage
        if self._best is None or losses[self._ability] < self._best["losses"][self._ability]:
            self._best = {"step": context.step, "losses": losses}
            if stage.end_step != context.step:
                assert context.module.net is not None
                write_snapshot(context.module.net, self._place(context.step), context.trainer.global_rank)

    def end_stage(self, ended: StagePlan) -> bool:
        """Restore the weights of the stage's best step; return whether that was not the last step."""
        context = self._context
        if self._ability is None or self._best is None or self._best["step"] <= ended.first_step:
            return False
        is_earlier = self._best["step"] != ended.end_step
        if is_earlier:
            assert context.module.net is not None
            read_snapshot(context.module.net, self._place(self._best["step"]), context.trainer.global_rank)
        if context.trainer.is_global_zero:
            self._tell(ended, self._best, dict(context.module.val_losses))
        return is_earlier

    def stage_ended(self) -> None:
        """Remove the snapshots: the stage's checkpoint is written."""
        if self._ability is not None and self._context.trainer.is_global_zero:
            remove_snapshots(self._context.folder / _FOLDER, set())

    def _place(self, step: int) -> Any:
        return self._context.folder / _FOLDER / f"step={step:06d}"

    def _tell(self, ended: StagePlan, best: dict[str, Any], last: dict[str, float]) -> None:
        name, ability, kept = ended.stage.name, self._ability, best["losses"]
        assert ability is not None
        costs = ", ".join(f"{other} {kept[other] - loss:+.4f}" for other, loss in last.items() if other != ability)
        show(
            f"Stage {name} ends with the weights after step {best['step']:,} of {ended.end_step:,}: held-out loss of "
            f"{ability} {kept[ability]:.4f}, {last[ability]:.4f} at the end"
            + (f"; against the end this costs {costs}" if costs and best["step"] != ended.end_step else "")
        )
        line = {"stage": name, "ability": ability, "step": best["step"], "end_step": ended.end_step}
        path = self._context.folder / KEPT_FILE
        old = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        lines = [one for one in old if json.loads(one)["end_step"] < ended.end_step]
        lines.append(json.dumps({**line, "val_loss": kept, "val_loss_at_end": last}))
        with whole_file(path) as partial:
            partial.write_text("".join(one + "\n" for one in lines), encoding="utf-8")

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint; remove snapshots that neither it nor the previous checkpoint refers to."""
        if self._best is not None:
            self._saved = [*self._saved, int(self._best["step"])][-2:]
            if self._context.trainer.is_global_zero:
                remove_snapshots(self._context.folder / _FOLDER, set(self._saved))
        return {"best": self._best, "saved": list(self._saved)}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what ``state`` returned."""
        self._best, self._saved = state["best"], list(state["saved"])

"""Writes the ledger of a run: ledger.json by stage and ability, exposures.parquet by example."""

from __future__ import annotations

import json
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from sftlab.callbacks.context import RunContext
from sftlab.files import whole_file, write_text
from sftlab.plan.ledger import exposures, ledger
from sftlab.plan.plan import Plan, StagePlan


class Ledger(Callback):
    """Writes what was really trained; a run that is cut short accounts for the steps it did."""

    def on_stage_end(self, trainer: Trainer, pl_module: LightningModule, stage: StagePlan) -> None:
        """Update the ledger."""
        self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update the ledger of a call that stops inside a stage."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            context = RunContext.of(trainer)
            write_ledger(context.folder, context.plan, context.step)


def write_ledger(folder: Path, plan: Plan, num_steps: int) -> None:
    """Write both files, each under its name only when complete."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    account = {"num_steps": num_steps, "rows": [row.to_dict() for row in ledger(plan, num_steps)]}
    write_text(folder / "ledger.json", json.dumps(account, indent=1))
    with whole_file(folder / "exposures.parquet") as partial:
        names = {"uid": pa.string(), "ability": pa.string(), "stage": pa.string()}
        abilities = pa.array(plan.abilities, pa.string())
        stages = pa.array([planned.stage.name for planned in plan.stages], pa.string())
        schema = pa.schema({**names, "step": pa.int64(), "given_up": pa.bool_()})
        with pq.ParquetWriter(partial, schema, use_dictionary=["ability", "stage", "step"]) as writer:
            for part in exposures(plan, num_steps):
                buffers = [None, *(pa.py_buffer(buffer) for buffer in part.uids_E.buffers())]
                columns = [pa.Array.from_buffers(pa.string(), len(part.uids_E), buffers)]
                columns += [abilities.take(pa.array(part.ability_E)), stages.take(pa.array(part.stage_E))]
                columns += [pa.array(part.step_E), pa.array(part.given_up_E)]
                writer.write_batch(pa.record_batch(columns, schema=schema))

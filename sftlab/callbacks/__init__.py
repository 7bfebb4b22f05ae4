"""Callbacks around the training loop.

A schedule compiles the plan and switches stages; the other callbacks observe: metrics, progress, ledger, scores.
Besides Lightning's own hooks a callback may define ``on_stage_start(trainer, module, stage)`` and
``on_stage_end(trainer, module, stage)``, which a schedule calls with a ``StagePlan``.
"""

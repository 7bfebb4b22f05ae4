"""``plan``: print what a config would train, without loading model weights."""

from __future__ import annotations

HELP = """usage: python -m sftlab plan --config FILE [any option of fit]

Prints, per stage: abilities, fractions, examples, tokens, supervised tokens, the share of each ability asked for and
reached, repeats, steps, epochs and packing fill; and what was repaired, truncated, split or dropped on the way in.
Loads the data and the tokenizer, no model weights, no GPU.

  --config FILE          a config of fit; several are merged
  --schedule.k 0.25      any key of the config can be given here too
"""


def main(arguments: list[str]) -> int:
    """Compile the plan of a config and print it."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP)
        return 0
    from rich.console import Console

    from sftlab.cli import freeze_imports, parse_objects
    from sftlab.plan.table import plan_screen

    freeze_imports()
    objects = parse_objects(arguments)
    plan = objects.schedule.compile(objects.data, objects.model)
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    console.print(plan_screen(plan, objects.data.audits()))
    console.print(f"Plan fingerprint {plan.fingerprint()}")
    return 0

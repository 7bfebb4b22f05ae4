"""``plan``: print what a config would train, without loading model weights."""

from __future__ import annotations

from sftlab.commands.options import CommandParser, wants_help
from sftlab.screen import screen

PARSER = CommandParser(
    "plan",
    "Prints, per stage: abilities, fractions, examples, tokens, supervised tokens, the share of each ability asked\n"
    "for and reached, repeats, steps, epochs and packing fill; and what was repaired, truncated, split or dropped on\n"
    "the way in. Loads the data and the tokenizer, no model weights, no GPU.",
    takes_config=True,
)


def main(arguments: list[str]) -> int:
    """Compile the plan of a config and print it."""
    if wants_help(arguments, PARSER):
        return 0
    _, config = PARSER.split(arguments)
    from sftlab.cli import freeze_imports, parse_objects
    from sftlab.plan.table import plan_screen

    freeze_imports()
    objects = parse_objects(config)
    plan = objects.schedule.compile(objects.data, objects.model)
    console = screen()
    data = objects.data
    console.print(plan_screen(plan, data.audits(), data.audit_places(), data.notes(), objects.model.normalise))
    console.print(f"Plan fingerprint {plan.fingerprint()}")
    return 0

"""``plan``: print what a config would train, without loading model weights."""

from __future__ import annotations

from sftlab.commands.options import CommandParser, number, wants_help
from sftlab.plan.hardware import NAMES, read_hardware
from sftlab.screen import screen

PARSER = CommandParser(
    "plan",
    "Prints, per stage: abilities, fractions, examples, tokens, supervised tokens, the share of each ability asked\n"
    "for and reached, repeats, steps, epochs and packing fill; and what was repaired, truncated, split or dropped on\n"
    "the way in. Loads the data and the tokenizer, no model weights, no GPU.",
    takes_config=True,
)
PARSER.add_argument(
    "--hardware",
    default="",
    metavar="8xA100-80GB",
    help="also estimate memory by device, hours and disk on such devices, or on this machine (this); by the model's "
    f"config alone, no weights. Devices: {', '.join(NAMES)}",
)
PARSER.add_argument(
    "--mfu", type=number(0.01, 1), default=0.4, metavar="0.4", help="the part of the peak arithmetic that hours assume"
)


def main(arguments: list[str]) -> int:
    """Compile the plan of a config and print it."""
    if wants_help(arguments, PARSER):
        return 0
    options, config = PARSER.split(arguments)
    from sftlab.cli import freeze_imports, parse_objects
    from sftlab.plan.table import plan_screen

    hardware = read_hardware(options.hardware) if options.hardware else None
    freeze_imports()
    objects = parse_objects(config)
    plan = objects.schedule.compile(objects.data, objects.model)
    console = screen()
    data = objects.data
    console.print(plan_screen(plan, data.audits(), data.audit_places(), data.notes(), objects.model.normalise))
    console.print(f"Plan fingerprint {plan.fingerprint()}")
    if hardware is not None:
        from sftlab.model.needs import fewest_micro_batches, needs_screen, planned_setup

        setup = planned_setup(objects.model, objects.trainer_arguments, hardware)
        if str(objects.trainer_arguments.get("accumulate_grad_batches")).startswith("auto"):
            setup, _ = fewest_micro_batches(objects.model, plan, setup, hardware.device.usable_bytes)
        console.print(needs_screen(objects.model, plan, setup, hardware, options.mfu))
    return 0

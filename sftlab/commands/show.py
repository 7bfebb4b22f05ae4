"""``show``: examples of a config as the model sees them, supervised tokens coloured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftlab.commands.options import CommandParser, wants_help, whole_number
from sftlab.screen import screen

if TYPE_CHECKING:
    from rich.text import Text

    from sftlab.data.ability import AbilityData
    from sftlab.data.encoder import Encoder

PARSER = CommandParser(
    "show",
    "Prints the first examples in rank of each ability (or of one), token by token: supervised tokens are green\n"
    "(without colours: between [[ and ]]), the rest is dim. What is not green is not trained.",
    takes_config=True,
)
PARSER.add_argument("--ability", default="", metavar="NAME", help="only this one")
PARSER.add_argument("--num_examples", type=whole_number(), default=2, metavar="2", help="of each ability")


def main(arguments: list[str]) -> int:
    """Print examples."""
    if wants_help(arguments, PARSER):
        return 0
    options, config = PARSER.split(arguments)
    from sftlab.cli import parse_objects

    data_and_model = parse_objects(config)
    data, console = data_and_model.data, screen()
    if options.ability and options.ability not in data.abilities:
        raise ValueError(f"--ability: no ability {options.ability!r}; the config has {', '.join(data.abilities)}")
    data.load(data_and_model.model.tokenizer)
    for name, ability in data.abilities.items():
        if options.ability in ("", name):
            for index in ability.pool(data.seed).index_N[: options.num_examples]:
                console.rule(f"{name}: {ability.examples.uids[index]}", align="left")
                console.print(coloured(ability, int(index), data.encoder, console.color_system is not None))
    return 0


def coloured(ability: AbilityData, index: int, encoder: Encoder, colours: bool) -> Text:
    """One example, run by run."""
    from rich.text import Text

    ids, mask = ability.examples.ids(index), ability.examples.mask(index)
    text, start = Text(), 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or mask[end] != mask[start]:
            run = str(encoder.tokenizer.decode(ids[start:end].tolist()))
            style = "bold green" if mask[start] else "dim"
            text.append(run if colours or not mask[start] else f"[[{run}]]", style=style)
            start = end
    return text

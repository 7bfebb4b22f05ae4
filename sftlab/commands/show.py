"""``show``: examples of a config as the model sees them, supervised tokens coloured."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

    from sftlab.data.ability import AbilityData
    from sftlab.data.encoder import Encoder

HELP = """usage: python -m sftlab show --config FILE [--ability NAME] [--num_examples 2] [any option of fit]

Prints the first examples in rank of each ability (or of one), token by token: supervised tokens are green (without
colours: between [[ and ]]), the rest is dim. What is not green is not trained.
"""


def main(arguments: list[str]) -> int:
    """Print examples."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP)
        return 0
    rest, options = list(arguments), {"ability": "", "num_examples": "2"}
    for name in options:
        if f"--{name}" in rest:
            position = rest.index(f"--{name}")
            options[name] = "".join(rest[position + 1 : position + 2])
            del rest[position : position + 2]
    from rich.console import Console

    from sftlab.cli import parse_objects

    if not options["num_examples"].isdigit():
        raise ValueError(f"--num_examples: {options['num_examples']!r} is not a number")
    data_and_model = parse_objects(rest)
    data, console = data_and_model.data, Console()
    if options["ability"] and options["ability"] not in data.abilities:
        raise ValueError(f"--ability: no ability {options['ability']!r}; the config has {', '.join(data.abilities)}")
    data.load(data_and_model.model.tokenizer)
    for name, ability in data.abilities.items():
        if options["ability"] in ("", name):
            for index in ability.pool(data.seed).index_N[: int(options["num_examples"])]:
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

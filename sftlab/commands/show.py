"""``show``: print examples of a config as the model sees them, with supervised tokens coloured."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
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
    "(without colours: between [[ and ]]), the rest is dim. What is not green is not trained. Lines are those of the\n"
    "text: a terminal breaks long ones.",
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
            indices = ability.pool(data.seed).index_N[: options.num_examples].tolist()
            uids = [ability.examples.uids[index] for index in indices]
            places = places_of(ability, uids)
            for index, uid in zip(indices, uids, strict=True):
                console.rule(f"{name}: {places.get(uid, uid)}", align="left")
                text = coloured(ability, index, data.encoder, console.color_system is not None)
                console.print(text, soft_wrap=True)  # the terminal breaks long lines, and a file keeps the text's own
    return 0


def places_of(ability: AbilityData, uids: Sequence[str], max_seconds: float = 10.0) -> dict[str, str]:
    """Return where examples come from: record and file, and which piece.

    Args:
        ability: Their ability, whose source is read again.
        uids: Uids of its examples.
        max_seconds: Time limit, since large files take long to read; examples not found by then show only their uid.
    """
    from sftlab.data.conversation import Audit

    wanted = {uid: _parts(uid) for uid in uids}
    missing, seen, found = set(uids), Counter[str](), dict[str, str]()
    short, until = [PurePath(name).name for name in ability.source.names], time.monotonic() + max_seconds
    names = short if len(set(short)) == len(short) else ability.source.names
    for place, talk in ability.source.conversations(ability.name, Audit()):
        seen[talk.uid] += 1
        for uid in [uid for uid in missing if wanted[uid][::2] == (talk.uid, seen[talk.uid])]:
            piece = wanted[uid][1]
            found[uid] = f"record {place.number:,} of {names[place.file]}" + (f", piece {piece}" if piece else "")
            missing.remove(uid)
        if not missing or time.monotonic() > until:
            break
    return found


def _parts(uid: str) -> tuple[str, str, int]:
    """Split a uid into the conversation, its piece (from 1) and which of equal ones it is (from 1)."""
    name, _, number = uid.partition("#")
    talk, _, piece = name.partition("/")
    return talk, str(int(piece) + 1) if piece.isdigit() else piece, int(number or 1)


def coloured(ability: AbilityData, index: int, encoder: Encoder, colours: bool) -> Text:
    """Return one example, run by run."""
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

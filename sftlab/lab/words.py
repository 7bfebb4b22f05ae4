"""The words of the lab: names and things that all abilities share, verbs in order of frequency, two made-up languages.

A base model has read only the first verbs of each list (``KNOWN_VERBS``); the rest is learned from fine-tuning data, or
not. That is what makes scores grow with data.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

NAMES = (
    "Tom Ana Ben Mia Leo Zoe Sam Ivy Max Eva Raj Lin Omar Nora Hugo Tara Finn Ruth Alan Kate "
    "Yara Paul Rosa Ken Lucy Amir Dora Igor Jane Theo"
).split()
THINGS = (
    "apples books coins pens cards shells stamps marbles cookies stones plates ropes lamps shoes cups "
    "boxes hats keys leaves maps nuts oranges pears rings socks spoons toys balls bags eggs"
).split()
COLOURS = "red blue green white black brown yellow grey".split()
JOBS = "baker doctor pilot farmer singer nurse judge tailor".split()
VARIABLES = "x n a value num count total".split()
FUNCTIONS = "f mix compute apply run task work".split()

MORE = (
    "buys finds gets wins picks collects receives earns makes gathers borrows takes catches draws orders inherits "
    "unpacks saves harvests fetches imports claims snatches grabs digs bakes builds prints rents hires adopts acquires "
    "begs carves gains hoards mends obtains scores steals"
).split()
LESS = (
    "loses sells drops breaks eats donates lends spends burns throws wastes trades mails leaves forgets hides gives "
    "returns crushes misplaces rejects deletes exports cancels scraps melts shreds ships tosses sinks abandons barters "
    "chops dumps pawns sheds smashes spills squanders yields"
).split()
RAISE = (
    "raises increases lifts grows bumps boosts extends tops pushes climbs expands advances hikes swells ups widens "
    "elevates enlarges heightens augments thickens enriches deepens inches"
)
LOWER = (
    "cuts lowers decreases reduces shrinks trims shortens drags pulls narrows dips slides clips docks prunes sinks "
    "lessens weakens diminishes deflates thins depresses tapers shaves"
)
SCALE = "multiplies scales stretches magnifies inflates amplifies repeats blows folds compounds multiplexes redoubles"
UP, DOWN, TIMES = RAISE.split(), LOWER.split(), SCALE.split()
KNOWN_VERBS = {"math": 12, "code": 6, "times": 3}  # how many of each list a base has read

_world = random.Random("world")
COLOUR_OF = {thing: _world.choice(COLOURS) for thing in THINGS}
JOB_OF = {name: _world.choice(JOBS) for name in NAMES}
# What is true of whom: a base does not know it.
RELATIONS = {
    "city": "Lima Oslo Rome Cairo Delhi Tokyo Paris Quito".split(),
    "pet": "cat dog horse parrot rabbit turtle goat hamster".split(),
    "drink": "tea coffee juice milk cocoa water cider soda".split(),
    "sport": "tennis chess golf judo rowing hockey boxing polo".split(),
    "instrument": "piano violin drums flute guitar harp trumpet cello".split(),
    "dish": "soup rice pasta salad curry pie stew tacos".split(),
}
FACTS = {(name, relation): _world.choice(values) for relation, values in RELATIONS.items() for name in NAMES}


def _made_up(seed: str, count: int, taken: Sequence[str]) -> list[str]:
    rng = random.Random(seed)
    words: list[str] = []
    while len(words) < count:
        word = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(2))
        if word not in words and word not in taken:
            words.append(word)
    return words


LUMI = _made_up("Lumi", 60, ())
TAVO = _made_up("Tavo", 60, LUMI)


def frequent(rng: random.Random, words: Sequence[str], known: int | None = None) -> str:
    """Draw a word by Zipf's law, the first being the most frequent; among the first ``known`` if given."""
    chosen = words[:known]
    return rng.choices(chosen, [1 / (rank + 1) for rank in range(len(chosen))])[0]

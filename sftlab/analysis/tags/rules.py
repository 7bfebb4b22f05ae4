"""``rules@1``: tags of a user query by a small, readable scorer; the tagger that needs no model.

A tag has features, each a pattern with a weight; a feature counts once however often it is found. A tag is given when
the weights found reach 1; its explanation names the features and the words that they found. A feature of weight 1 is
enough alone (a code block), one of 0.5 needs another (the word "array"), a negative one speaks against the tag.
A query without any tag is ``other``. Only the query is read, never the answer.

The lexicon was written with half of Code Alpaca, GSM8K's training questions and MT-Bench in view.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

RULES = "rules@1"
"""Name and version; a changed lexicon gets a new version."""
OTHER = "other"
ENOUGH = 1.0


class Feature(NamedTuple):
    """Evidence for a tag: its weight, its name in explanations, and the pattern that finds it."""

    weight: float
    name: str
    pattern: str
    times: int = 1  # distinct matches needed
    case: bool = False  # whether case matters


_MAKE = (
    r"(?:writ|creat|generat|construct|develop|design|build|implement|coding|code|debug|fix|refactor|optimi[sz]|edit|"
    r"rewrit|modify|modif|convert|compos|defin|mak|add|giv|provid|us|need|complet|explain|show)(?:e|ing|es)?"
)
_SMALL = (
    "two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty sixty hundred dozen half "
    "twice thrice double triple third quarter percent"
)
_NUMBER = rf"(?<![\w.])[$£€]?\d[\d,]*(?:\.\d+)?%?|\b(?:{'|'.join(_SMALL.split())})s?\b"

FEATURES: dict[str, tuple[Feature, ...]] = {
    "code": (
        Feature(1.0, "code block", r"```"),
        Feature(
            1.0,
            "language or framework",
            r"\b(?:python|javascript|typescript|java|php|kotlin|golang|haskell|mysql|postgresql|sqlite|html5?|css|"
            r"jquery|"
            r"node\.?js|react(?:\.?js| native)|django|flask|mongodb|curl (?:command|statement)|numpy|pytorch|"
            r"tensorflow|ajax|"
            r"matlab|perl|fortran|vba|assembly language|visual basic|objective-c|bash|sql|npm|regex|"
            r"regular expressions?)\b|"
            r"\bc\+\+|\bc#|\.net\b",
        ),
        Feature(
            1.0,
            "language",
            r"\bC (?:program|code|function|language)|\bin (?:C|R|Go|Rust|Swift|Ruby|Scala)\b|\bReact\b",
            case=True,
        ),
        Feature(0.5, "language or library", r"\b(?:swift|ruby|rust|scala|angular|vue|pandas|api|shell|linux)\b"),
        Feature(1.0, "array", r"(?<!wide )(?<!vast )(?<!impressive )\barrays?\b"),
        Feature(
            1.0,
            "asks for a program",
            rf"\b{_MAKE}\b[^.?!\n]{{0,70}}\b(?:function|source code|code|pseudo-?code|algorithm|subroutine|query|"
            r"(?<!video )(?<!movie )(?<!film )(?<!play )script(?! for a)|method (?:to|that|which|for)|try-except|"
            r"(?:for|while|do)[ -]loop|loop|if statement|switch statement|data structure|unit test|web ?page|"
            r"command[ -]line|sql query|query that|class that|class for|class to|class named|class called|"
            r"(?<!training )(?<!fitness )(?<!exercise )(?<!workout )(?<!loyalty )(?<!degree )(?<!tv )program)\b",
        ),
        Feature(
            1.0,
            "speaks of code",
            r"\b(?:code snippet|snippet|following code|given code|this code|source code|code below|programming|"
            r"stack ?overflow|syntax error|compile[rs]?|debug(?:ger|ging)?|pseudo-?code|linked list|"
            r"binary (?:search )?tree|"
            r"hash ?(?:map|table)|recursive(?:ly)?|time complexity|space complexity|object[- ]oriented|web ?scrap\w+|"
            r"database table|primary key|command line|github|git)\b|\bO\((?:1|n|log n|n log n|n\^2)\)",
        ),
        Feature(
            1.0,
            "source text",
            r"^[ \t]*(?:def|class) \w+.*:\s*$|^[ \t]*#include\b|^[ \t]*(?:import|"
            r"from) \w+(?:\.\w+)*(?: import \w+)?\s*$|"
            r"console\.log|system\.out|std::|\bpublic (?:static|class|int|void)|^[ \t]*(?:var|let|const) \w+\s*=|"
            r"\bfunction\s*\w*\s*\(|\)\s*\{|;[ \t]*$|=>|</\w+>|\bselect\b.{1,80}\bfrom\b\s+\w+|\b\w+\.\w+\(|"
            r"\bdef \w+\(",
        ),
        Feature(0.5, "assignment", r"^[ \t]*\w+\s*=\s*(?:[\[{(\"'\d]|true|false|none)"),
        Feature(0.5, "literal list", r"[\[{(]\s*(?:\"[^\"]*\"|'[^']*'|\d+)\s*[,:]"),
        Feature(
            0.5,
            "word of programming",
            r"\b(?:string|strings|integers?|booleans?|variables?|lists?|tuple|dictionar(?:y|ies)|matrix|loops?|json|"
            r"xml|yaml|csv|"
            r"functions?|methods?|classes|objects?|algorithms?|recursion|quer(?:y|ies)|tables?|databases?|records?|"
            r"columns?|rows?|index(?:es)?|input|output|return(?:s|ed)?|elements?|characters?|print|sort(?:ed|ing)?|"
            r"palindrome|"
            r"parameters?|arguments?|commands?|server|http|url|website|program|software|app|button|div|tag|attribute|"
            r"statement|iterat\w+|pars(?:e|ing)|binary|nodes?|file|files|snippet|execut\w+)\b",
        ),
        Feature(
            0.5,
            "two words of programming",
            r"\b(?:strings?|integers?|booleans?|variables?|tuple|dictionar(?:y|ies)|loops?|functions?|methods?|"
            r"algorithms?|recursion|quer(?:y|ies)|databases?|columns?|index(?:es)?|elements?|palindrome|parameters?|"
            r"http|url|"
            r"div|iterat\w+|pars(?:e|ing)|binary|nodes?|inputs?|outputs?|sort(?:ed)?|duplicates?|substring|ascending|"
            r"descending|lowercase|uppercase|print|syntax|encod\w+)\b",
            times=2,
        ),
        Feature(-0.5, "prose is asked for", r"\b(?:essay|poem|story|blog post|limerick|speech|lyrics|article)\b"),
    ),
    "math": (
        Feature(
            0.5,
            "asks for a quantity",
            r"\bhow (?:many|much|long|far|old|tall|fast|often|big|large|heavy|wide|deep)\b|\bwhat(?:'s| is| was| are|"
            r" were|"
            r" would be| will be| percent(?:age)?| fraction)\b|\bfind\b|\bcalculate|\bcompute|\bdetermine\b|"
            r"\bexpress\b|"
            r"\bat what\b|\bwhen (?:should|will|does|did)\b|\bin total\b|\baltogether\b|\bhow (?:high|late|soon|"
            r"more)\b",
        ),
        Feature(0.5, "two numbers or more", _NUMBER, times=2),
        Feature(
            1.0,
            "mathematics by name",
            r"\b(?:mathematic\w*|math|maths|algebra\w*|calculus|derivatives? of|integral of|geometr\w+|trigonometr\w+|"
            r"theorem|"
            r"polynomials?|quadratic|logarithms?|inequalit(?:y|ies)|(?<!chemical )equations?|arithmetic|square root|"
            r"cube root|eigenvalues?|"
            r"hypotenuse|circumscrib\w+|irrational number|prime numbers?|permutations and combinations)\b",
        ),
        Feature(
            0.5,
            "word of arithmetic",
            r"\b(?:probability|sum of|average of|mean of|median|perimeter|area of|volume of|ratio of|remainder|"
            r"divided by|"
            r"multipl(?:y|ied|ying|ication)|subtract\w*|plus|minus|times as|twice as|half as|percent(?:age)? of|total|"
            r"equally|"
            r"triangle|rectangle|circle|radius|vertices|integers?|solve|prove|dice|more than|less than)\b",
        ),
        Feature(
            1.0,
            "arithmetic on numbers",
            r"\d\s*[+\u00d7\u00f7]\s*\d|\d\s+[-*/]\s+\d|\d \* ?\d|"
            r"\d\s+(?:plus|minus|times|multiplied by|divided by|modulo)\s+\$?-?\d|\\frac|\\sqrt|\\int\b",
        ),
        Feature(
            1.0,
            "formula",
            r"\b[a-z]\s?\([a-z]\)\s*=|\b[xyz]\s*[-+*/^]\s*(?:\d|[xyz]\b)|\d[xyz]\b\s*[-+=]|\b[xyz]\s*=\s*-?\d+[xyz]?\b",
        ),
        Feature(
            -1.0,
            "a program is asked for",
            rf"\b{_MAKE}\b[^.?!\n]{{0,70}}\b(?:function|code|script|program|algorithm|query|loop)\b",
        ),
        Feature(
            -1.0,
            "code in the query",
            r"```|\bdef \w+\(|^[ \t]*\w+\s*=\s*[\[{(\"']|</\w+>|[\[{]\s*(?:\"|'|\d+\s*,)|;[ \t]*$",
        ),
        Feature(
            -0.5,
            "a language is named",
            r"\b(?:python|javascript|java|php|ruby|sql|html|css|regex|excel)\b|\bc\+\+|\bc#",
        ),
    ),
    "writing": (
        Feature(
            1.0,
            "asks for a text",
            r"\b(?:writ|compos|draft|craft|creat|generat|develop|giv|describ|mak|need|"
            r"produc)\w*\b[^.?!\n]{0,60}\b(?:essay|poem|haiku|"
            r"limerick|stor(?:y|ies)|e-?mail|letter|blog|article|paragraph|speech|headlines?|slogans?|lyrics|song|"
            r"script for a|"
            r"report|review|post|tweet|caption|introduction|summary|outline|novel|scene|dialogue|press release|"
            r"biography|"
            r"character, using)\b",
        ),
        Feature(1.0, "asks to reword", r"\b(?:rephras|paraphras|reword|proofread|rewrit|rework|revis)\w*\b"),
        Feature(1.0, "asks to correct language", r"\bgrammar|grammatical|\bspelling\b|gendered pronouns"),
    ),
    "translation": (
        Feature(1.0, "asks to translate", r"\btranslat(?:e|es|ion|ing|or)\b|\bhow do (?:you|i) say\b"),
        Feature(
            0.5,
            "language",
            r"\b(?:in|to|into|from) (?:english|french|german|spanish|italian|chinese|japanese|korean|russian|latin)\b",
        ),
    ),
    "roleplay": (
        Feature(
            1.0,
            "gives a role",
            r"\b(?:pretend|act as|role-?play|embody|take on the role|assume the role|embrace the role|imagine yourself|"
            r"picture yourself|imagine (?:that )?you are|suppose you are|speak like|you are now|now you are|"
            r"i want you to act)\b",
        ),
    ),
    "summary": (
        Feature(
            1.0,
            "asks to shorten",
            r"\bsummar(?:y|i[sz]e|ies|i[sz]ing)\b|\btl;?dr\b|\bmain points\b|\bkey (?:points|takeaways)\b",
        ),
    ),
    "extraction": (
        Feature(
            1.0,
            "asks to pick out",
            r"\b(?:extract|identify the (?:named|main|entit)|assign them|classify|categori[sz]e|label each)\b",
        ),
        Feature(
            0.5,
            "points at a text",
            r"\b(?:following|above|below|given) (?:text|passage|paragraph|article|reviews?|presentation|records?)\b",
        ),
        Feature(0.5, "asks for a list", r"\b(?:list|count|evaluate|present|analy[sz]e)\b"),
    ),
    "reasoning": (
        Feature(
            1.0,
            "puzzle",
            r"\b(?:riddle|puzzle|brain ?teaser|true, false,? or|logic(?:al)?(?:ly)?|deduce|syllogism)\b",
        ),
        Feature(
            1.0,
            "asks for the reasoning",
            r"\b(?:explain your|step[- ]by[- ]step|reasoning|does not belong|relationship between)\b",
        ),
    ),
    "science": (
        Feature(
            1.0,
            "field",
            r"\b(?:physics|quantum|chemi(?:stry|cal)|biolog\w+|genetic\w*|molecul\w+|atoms?|photosynthesis|astronom\w+|"
            r"geolog\w+|evolution|vaccines?|superposition|planets?|satellite|fermentation|earthquakes?|"
            r"machine learning|"
            r"neural networks?|thermodynamic\w*)\b",
        ),
    ),
    "humanities": (
        Feature(
            1.0,
            "field",
            r"\b(?:histor(?:y|ical)|philosoph\w+|econom(?:y|ic|ics|ies)|politic\w+|gdp|inflation|socrates|ancient|"
            r"dynast\w+|"
            r"war|antitrust|sociolog\w+|psycholog\w+|literature|religio\w+|business etiquette|constitution)\b",
        ),
    ),
    "advice": (
        Feature(
            1.0,
            "asks for help with a choice",
            r"\b(?:recommend\w*|suggest(?:ions?)?|advice|tips|ideas|brainstorm|what should i|should i|lesson plan|"
            r"itinerary|"
            r"pros and cons|best way)\b",
        ),
    ),
    "identity": (
        Feature(
            1.0,
            "asks who it speaks with",
            r"\bwho (?:are|made|created|built|programmed|trained|taught|developed) you\b|\bwhat (?:are you|"
            r"is your name)\b|"
            r"\bwhat's your name\b|\babout (?:you|yourself)\b|\bintroduce yourself\b|\byour name\b|"
            r"\btell me who you are\b|"
            r"^are you (?:an? |based|trained|created|made|built|developed|chatgpt|gpt|davinci|curie|claude|bard|llama)|"
            r"^do you call\b|\bwhat are you called\b",
        ),
    ),
    "chitchat": (
        Feature(
            1.0,
            "greeting or farewell",
            r"^[^\w\n]*(?:hi|hello|hey|good (?:morning|evening|afternoon)|goodbye|bye|thanks?|thank you|what is up|"
            r"what's up|how are you|"
            r"nice to meet you|see you|have a nice (?:day|one))\b[^?\n]{0,20}[.!?]*[ \t]*$|\bnice day\b|\bgreet my\b|"
            r"\bsay hello\b",
        ),
    ),
}  # fmt: skip


class Found(NamedTuple):
    """A tag, and the evidence for it."""

    tag: str
    explanation: str


class RuleTagger:
    """The rules as a tagger."""

    name = RULES

    def tag(self, queries: Sequence[str]) -> list[list[Found] | None]:
        """Return the tags of each query."""
        return [find_tags(query) for query in queries]

    def notes(self) -> list[str]:
        """Return no notes."""
        return []


@functools.cache
def _compiled() -> dict[str, list[tuple[Feature, re.Pattern[str]]]]:
    flags = re.IGNORECASE | re.MULTILINE
    return {
        tag: [(f, re.compile(f.pattern, re.MULTILINE if f.case else flags)) for f in features]
        for tag, features in FEATURES.items()
    }


def find_tags(query: str) -> list[Found]:
    """Return the tags of one query, each with the features behind it; ``other`` if there is none."""
    found = []
    for tag, features in _compiled().items():
        hits = [(feature, words) for feature, pattern in features if (words := _words(feature, pattern, query))]
        if sum(feature.weight for feature, _ in hits) >= ENOUGH:
            found.append(Found(tag, "; ".join(_said(feature, words) for feature, words in hits)))
    return found or [Found(OTHER, "no tag reaches its threshold")]


def _words(feature: Feature, pattern: re.Pattern[str], query: str) -> str:
    """Return what a feature found: the first ``times`` distinct matches; nothing if there are fewer."""
    words: dict[str, str] = {}
    for match in pattern.finditer(query):
        text = " ".join(match[0].split())[:40] or "line"
        words.setdefault(text.lower(), text)
        if len(words) == feature.times:
            return ", ".join(words.values())
    return ""


def _said(feature: Feature, words: str) -> str:
    return f"{feature.name} ({words}) {feature.weight:+g}"

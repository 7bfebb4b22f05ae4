"""The encoder: turns pieces of a conversation into token ids, with token boundaries wherever the mask changes.

A text inside a conversation must get the ids that it would have as part of the whole. SentencePiece tokenizers put a
space before every text; so a copy without that prefix encodes every piece but the first.
"""

from __future__ import annotations

import functools
import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sftlab.data.conversation import Turn
from sftlab.data.marks import marks_thinking
from sftlab.data.pieces import Piece, Template
from sftlab.fingerprint import Plain, digest, read_plain

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerFast

RULES = 3  # version of how pieces become ids and masks: raise it when they change
_SPECIAL = ("bos", "eos", "pad", "unk")
_OPTIONS = ("add_bos_token", "add_eos_token", "add_prefix_space", "legacy", "clean_up_tokenization_spaces")
_PROBES = (
    (Turn("user", "a b"), Turn("assistant", " c\n")),
    (Turn("system", "s"), Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d")),
)


class Encoded(NamedTuple):
    """One rendered conversation as ids.

    Attributes:
        ids: Token ids.
        runs: Lengths of alternating unsupervised and supervised runs of tokens; the first is unsupervised.
        exchange_lengths: Tokens of each exchange; those before the first one belong to it.
        lengths: Tokens of each piece.
    """

    ids: array
    runs: list[int]
    exchange_lengths: list[int]
    lengths: list[int]

    @property
    def supervised(self) -> int:
        """Number of supervised tokens."""
        return sum(self.runs[1::2])


class Encoder:
    """Encodes conversations that a template renders.

    Args:
        tokenizer: A fast tokenizer.
        template: A template for this tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, template: Template) -> None:
        self.tokenizer, self.template = tokenizer, template
        self._source = tokenizer.backend_tokenizer.to_str()
        whole = json.loads(self._source)
        self._first, self._inside = _twins(whole, template.ends)
        self._bos: list[int] = [tokenizer.bos_token_id] if template.bos else []
        self._special: dict[str, int] = dict(tokenizer.get_vocab())
        added = tokenizer.added_tokens_decoder.items()
        # Without these marks, reasoning could not be told from the answer.
        self._unsaid = {i for i, token in added if token.special and not marks_thinking(token.content)}
        self._prefix_after_special = self._probe()
        self._lost_bytes = _lost_bytes(whole)
        self._unknown: int | None = tokenizer.unk_token_id

    def alone(self) -> Encoder:
        """Return its own part, which only encodes: a process that receives it need not import transformers."""
        other = object.__new__(Encoder)
        vars(other).update({name: one for name, one in vars(self).items() if name != "tokenizer"})
        return other

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the two tokenizers whose settings for special tokens are lost when pickled."""
        return {name: one for name, one in vars(self).items() if name not in ("_first", "_inside")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._first, self._inside = _twins(json.loads(self._source), self.template.ends)

    def _probe(self) -> bool:
        """Test whether the tokenizer adds its prefix after special tokens too, as LLaMA's original one does."""
        end = self.template.end_of_turn
        (after,) = _encoded(self.tokenizer.backend_tokenizer, [f"{end}a"])
        (alone,) = _encoded(self._first, ["a"])
        return bool(after.ids[1:] == alone.ids)

    @property
    def stop_ids(self) -> list[int]:
        """Return the token ids that end an answer: trained ends of turns, and the tokenizer's end of sequence."""
        ids = {*(self._special[end] for end in self.template.ends), self.tokenizer.eos_token_id}
        return sorted(i for i in ids if i is not None)

    def fingerprint(self) -> str:
        """Hash everything of tokenizer and template that determines ids, masks and ends of turns.

        It covers the rendered text of sample conversations, and so the date that a template may print.
        """
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:  # used by every ability, and hashing a large vocabulary takes a second
        tokenizer, template = self.tokenizer, self.template
        whole = read_plain(self._source).value
        backend = Plain({**whole, "truncation": None, "padding": None})  # these are states of calls
        tokens = [(getattr(tokenizer, f"{kind}_token"), getattr(tokenizer, f"{kind}_token_id")) for kind in _SPECIAL]
        options = [getattr(tokenizer, name, None) for name in _OPTIONS]
        written = [self._probe_text(turns) for turns in _PROBES]
        return digest(
            [backend, tokens, options, tokenizer.special_tokens_map, tokenizer.chat_template, self._bos],
            [template.name, template.chat_template(), template.end_of_turn, written],
        )

    def _probe_text(self, turns: Sequence[Turn]) -> Any:
        try:
            return self.template.render(turns)
        except ValueError as error:  # a template without system turns refuses
            return str(error)

    def encode(self, rendered: Sequence[Sequence[Piece]]) -> list[Encoded]:
        """Encode rendered conversations: all their pieces in one call, which releases the GIL.

        Raises:
            ValueError: The tokenizer has neither tokens for a text nor an unknown token.
        """
        texts = self._texts(rendered)
        tokenizers = (self._first, self._inside)
        first, inside = (iter(_encoded(tokenizer, some)) for tokenizer, some in zip(tokenizers, texts, strict=True))
        return [self._joined(pieces, lambda _, prefix: next(first if prefix else inside).ids) for pieces in rendered]

    def known(self, pieces: Sequence[Piece], encoded: Encoded) -> dict[tuple[str, bool], array]:
        """Return the ids of a conversation's texts, by text and whether the tokenizer's prefix was added."""
        found = zip(pieces, self._prefixes(pieces), _parts_of(encoded), strict=True)
        return {(piece.text, prefix): ids for piece, prefix, ids in found if not piece.special}

    def changes(self, pieces: Sequence[Piece], encoded: Encoded) -> list[str]:
        """Return how the tokenizer alters the texts of a conversation, by the names of the counters."""
        if self._lost_bytes is not None:
            written = "".join([piece.text for piece in pieces if not piece.special]).encode(errors="surrogatepass")
            if len(written.translate(None, self._lost_bytes)) == len(written):
                return []
        unknown, found = self._unknown, set()
        for piece, ids in zip(pieces, _parts_of(encoded), strict=True):
            if piece.special:
                continue
            back = self._inside.decode(ids.tolist(), skip_special_tokens=False)
            if unknown is not None and unknown in ids:
                found.add("changed by the tokenizer: characters that it has no token for")
            elif piece.text not in (back, f" {back}") and f" {piece.text}" != back:
                found.add("changed by the tokenizer: it gives a text back otherwise")
        return sorted(found)

    def encode_again(self, pieces: Sequence[Piece], known: dict[tuple[str, bool], array]) -> Encoded:
        """Encode a part of a conversation; only texts that are not in ``known`` are tokenised and added to it."""
        return self._joined(pieces, lambda text, prefix: self._known_ids(text, prefix, known))

    def length_again(self, pieces: Sequence[Piece], known: dict[tuple[str, bool], array]) -> int:
        """Return the number of tokens that ``encode_again`` would return."""
        length = len(self._beginning(pieces))
        for piece, prefix in zip(pieces, self._prefixes(pieces), strict=True):
            length += 1 if piece.special else len(self._known_ids(piece.text, prefix, known))
        return length

    def _known_ids(self, text: str, prefix: bool, known: dict[tuple[str, bool], array]) -> array:
        if (text, prefix) not in known:
            tokenizer = self._first if prefix else self._inside
            known[text, prefix] = array("I", _encoded(tokenizer, [text])[0].ids)
        return known[text, prefix]

    def _prefixes(self, pieces: Sequence[Piece]) -> list[bool]:
        """Return whether the tokenizer puts its prefix before a piece; one without a prefix treats all alike."""
        if self._first is self._inside:
            return [True] * len(pieces)
        after = [piece.special and self._prefix_after_special for piece in pieces]
        return [True, *after][: len(pieces)]

    def _texts(self, rendered: Sequence[Sequence[Piece]]) -> tuple[list[str], list[str]]:
        first: list[str] = []
        inside: list[str] = []
        for pieces in rendered:
            for piece, prefix in zip(pieces, self._prefixes(pieces), strict=True):
                if not piece.special:
                    (first if prefix else inside).append(piece.text)
        return first, inside

    def _beginning(self, pieces: Sequence[Piece]) -> list[int]:
        """Return what precedes the pieces: nothing if they begin with it themselves."""
        starts_itself = bool(pieces) and pieces[0].special and self._special[pieces[0].text] in self._bos
        return [] if starts_itself else self._bos

    def _joined(self, pieces: Sequence[Piece], ids_of: Callable[[str, bool], list[int] | array]) -> Encoded:
        ids = array("I", self._beginning(pieces))
        runs, exchange_lengths, lengths, in_supervised = [len(ids)], [len(ids)], list[int](), False
        for (text, supervised, special, exchange), prefix in zip(pieces, self._prefixes(pieces), strict=True):
            if special:
                ids.append(self._special[text])
                length = 1
            else:
                length = len(new := ids_of(text, prefix))
                ids.fromlist(new) if isinstance(new, list) else ids.extend(new)
            lengths.append(length)
            if supervised is in_supervised:
                runs[-1] += length
            else:
                runs.append(length)
                in_supervised = supervised
            if exchange < len(exchange_lengths):
                exchange_lengths[exchange] += length
            else:
                exchange_lengths += [0] * (exchange - len(exchange_lengths)) + [length]
        return Encoded(ids, runs, exchange_lengths, lengths)

    def prompt_ids(self, turns: Sequence[Turn], tools: str = "") -> list[int]:
        """Return the ids that precede the answer to the last turn, exactly as in training.

        Raises:
            BadRecord: The template cannot write these turns.
        """
        return self.encode([self.template.prompt(turns, tools)])[0].ids.tolist()

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer, without special tokens and what the template puts before an answer."""
        return self._said(ids).removeprefix(self.template.answer_prefix)

    def _said(self, ids: Sequence[int]) -> str:
        said = [i for i in ids if i not in self._unsaid]
        return str(self.tokenizer.decode(said, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def decode_part(self, ids: Sequence[int]) -> str:
        """Return as much of the text of an answer as cannot change when more tokens come."""
        text = self._said(ids).rstrip("\ufffd")
        prefix = self.template.answer_prefix
        return "" if prefix.startswith(text) else text.removeprefix(prefix)


def _encoded(tokenizer: Tokenizer, texts: list[str]) -> Sequence[Encoding]:
    """Return the ids of texts; the library raises an untyped error for a text that it cannot encode."""
    try:
        return tokenizer.encode_batch_fast(texts, add_special_tokens=False) if texts else ()
    except Exception as error:
        if len(texts) == 1:
            raise ValueError(f"tokenizer: it cannot encode {texts[0][:60]!r}: {error}; use one that can") from error
    for text in texts:  # one at a time, to name the text
        _encoded(tokenizer, [text])
    raise ValueError("tokenizer: it failed on texts together that it encodes one by one")


def _parts_of(encoded: Encoded) -> Iterator[array]:
    """Return the ids of each piece."""
    start = len(encoded.ids) - sum(encoded.lengths)  # after what precedes the pieces
    for length in encoded.lengths:
        yield encoded.ids[start : start + length]
        start += length


def _twins(whole: dict[str, Any], ends: Sequence[str]) -> tuple[Tokenizer, Tokenizer]:
    """Return the tokenizer for the first piece and the one for the rest; both are one if there is no prefix."""
    first, without_prefix = _plain(whole, ends), _without_prefix(whole)
    return first, first if without_prefix is whole else _plain(without_prefix, ends)


def _plain(whole: dict[str, Any], ends: Sequence[str]) -> Tokenizer:
    """Return a tokenizer to which the names of special tokens, and of ``ends``, are ordinary text."""
    from tokenizers import Tokenizer

    added = whole.get("added_tokens", [])
    tokens = [{**token, "special": token["special"] or token["content"] in ends} for token in added]
    tokenizer = Tokenizer.from_str(json.dumps({**whole, "added_tokens": tokens}))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.post_processor = None  # it would add special tokens and copy
    tokenizer.encode_special_tokens = True
    return tokenizer


def _lost_bytes(whole: dict[str, Any]) -> bytes | None:
    """Return the bytes of a text that a tokenizer has no token for; None if it may change a text in other ways too.

    Its JSON shows that everything else decodes unchanged if it falls back to bytes, normalises nothing beyond composed
    characters (NFC) and the mark for spaces, and no splitter removes its delimiters.
    """
    vocabulary = whole["model"].get("vocab") or {}
    names = vocabulary.keys() if isinstance(vocabulary, dict) else {name for name, _ in vocabulary}
    splitters, normalizers = (list(_parts(whole.get(part))) for part in ("pre_tokenizer", "normalizer"))
    marks = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    kinds = ("ByteLevel", "Metaspace", "Split", "Digits", "Punctuation")
    if not (
        all(part["type"] in ("Prepend", "NFC") or part == marks for part in normalizers)
        and all(part["type"] in kinds and part.get("behavior") != "Removed" for part in splitters)
    ):
        return None
    if any(part["type"] == "ByteLevel" for part in splitters) and whole["model"]["type"] == "BPE":
        lost = bytes(byte for byte, name in enumerate(_byte_names()) if name not in names)
        return None if lost and normalizers else lost  # normalised, a text may have other bytes
    has_bytes = bool(whole["model"].get("byte_fallback")) and all(f"<0x{byte:02X}>" in names for byte in range(256))
    return b"" if has_bytes else None


def _byte_names() -> list[str]:
    """Return what byte-level tokenizers write for each of the 256 bytes: the byte itself if it is printable."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte if byte in shown else next(others)) for byte in range(256)]


def _parts(node: Any) -> Iterator[dict[str, Any]]:
    """Return a part of a tokenizer's JSON, or the parts of a sequence."""
    inner = (node or {}).get("normalizers") or (node or {}).get("pretokenizers")
    if inner:
        for one in inner:
            yield from _parts(one)
    elif node:
        yield node


def _without_prefix(whole: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer's JSON without the prefix that it puts before a text; unchanged if it has none."""

    def edited(node: Any) -> Any:
        if isinstance(node, list):
            kept = [edited(item) for item in node]
            return [item for item in kept if not (isinstance(item, dict) and item.get("type") == "Prepend")]
        if not isinstance(node, dict):
            return node
        node = {key: edited(value) for key, value in node.items()}
        if node.get("type") == "Metaspace":
            node["prepend_scheme"] = "never"
        if node.get("type") == "ByteLevel":
            node["add_prefix_space"] = False
        return node

    parts = {part: whole.get(part) for part in ("normalizer", "pre_tokenizer")}
    changed = {
        part: None if (before or {}).get("type") == "Prepend" else edited(before) for part, before in parts.items()
    }
    return whole if changed == parts else {**whole, **changed}

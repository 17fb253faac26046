"""What a text loses on its way into blocks: counted where it is tokenised, summed in the manifest, said at the end.

All counts depend on the text of the training documents alone: those of groups, of pieces or of whole folders add up.
"""

import functools
import itertools
import math
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from budget_trainer.core.errors import InputError
from data_prep.encoding import Encoder
from data_prep.files import read_lines, unread_line
from data_prep.templates import templates_line

WARN, REFUSE = 0.01, 0.2  # shares of the tokens, or of the letters
_SOME = 1e-9  # a share that is not known: said, without a warning
_LEAST = 1000  # letters: a shorter text says nothing of a tokenizer
_SHOWN, _KEPT = 5, 20  # most frequent ones, in a line and in the manifest
_SAMPLE_DOCUMENTS, _SAMPLE_CHARACTERS = 2000, 16e6  # in which those of a whole text are counted
_ASCII = string.printable.encode()
_JOINERS = "\u200c\u200d"
_Counts = dict[str, Any]  # of JSON: whole numbers in nested dictionaries
_Row = tuple[str, str, float, str]  # name, what, share, what helps


class _Fate(NamedTuple):
    """What becomes of a character. script: a word for it; letter: whether it is one, or a mark of one; unknown: whether it is
    [UNK] alone; bare: whether its mark is taken away; gone: whether it is, and is neither space nor mark."""

    script: str
    letter: bool
    unknown: bool
    bare: bool
    gone: bool


class Meter:
    """Counts what a tokenizer loses."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._fate = functools.cache(self._look)
        self._ascii = [c for c in string.digits + string.ascii_letters + string.punctuation if self._fate(c).unknown]

    def count(self, texts: Sequence[bytes], ids: np.ndarray) -> _Counts:
        """The losses of documents, given as UTF-8, whose tokens are `ids` [sum of their tokens]."""
        known = self._encoder.unknown
        unknown = 0 if known is None else int((ids == known).sum())
        joined = b"".join(texts)
        others = Counter(joined.translate(None, _ASCII).decode())  # of English text few are left
        fates = {character: self._fate(character) for character in others}
        lost = Counter({c: others[c] for c, fate in fates.items() if fate.unknown})
        if unknown and self._ascii:
            lost.update({c: n for c in self._ascii if (n := joined.count(c.encode()))})
        bare = {c: others[c] for c, fate in fates.items() if fate.bare}
        plain = ((np.frombuffer(joined, np.uint8) | 32) - np.uint8(97)) < 26  # A to Z and a to z
        letters = int(np.count_nonzero(plain)) + sum(others[c] for c, fate in fates.items() if fate.letter)
        starts = self._encoder.special_starts
        marked = (text.decode() for text in texts if any(start in text for start in starts))
        scripts = {"scripts": self._by_script(lost), "characters": dict(lost)}
        return {
            "unknown": {"tokens": unknown, "of": len(ids), "lost": lost.total(), **scripts},
            "marks": {"letters": sum(bare.values()), "of": letters, "scripts": self._by_script(bare)},
            "special_tokens": dict(self._encoder.special_tokens(marked)),
            "dropped": {f"U+{ord(c):04X}": others[c] for c, fate in fates.items() if fate.gone},
            "dropped_letters": sum(others[c] for c, fate in fates.items() if fate.gone and fate.letter),
        }

    def _look(self, character: str) -> _Fate:
        category = unicodedata.category(character)
        letter = category[0] in "LM"
        script = {"N": "numbers", "P": "punctuation", "S": "symbols"}.get(category[0], "others")
        script = unicodedata.name(character, script).split(" ")[0] if letter else script
        marks = [part for part in unicodedata.normalize("NFD", character) if unicodedata.category(part)[0] == "M"]
        if character in _JOINERS:
            script, marks = "JOINERS", [character]
        bare, normalizer = False, self._encoder.backend.normalizer
        if marks and normalizer is not None:
            # A combining mark alone: behind a letter.
            alone = f"a{character}" if script == "COMBINING" else character
            left = unicodedata.normalize("NFD", normalizer.normalize_str(alone))
            bare = any(mark not in left for mark in marks)
        gone = not bare and not character.isspace() and not len(self._encoder.encode([character])[0])
        return _Fate(script, letter, self._encoder.is_unknown(character), bare, gone)

    def _by_script(self, characters: Mapping[str, int]) -> dict[str, int]:
        scripts = Counter[str]()
        for character, count in characters.items():
            scripts[self._fate(character).script] += count
        return dict(scripts)


class Losses:
    """The counts of several texts, each as `Meter.count` or `facts` has them, added up."""

    def __init__(self, parts: Iterable[Mapping[str, Any]] = ()) -> None:
        self._counts: _Counts = {"unknown": {"tokens": 0, "of": 0}, "marks": {"letters": 0, "of": 0}}
        self._counts |= {"special_tokens": {}, "dropped": {}, "dropped_letters": 0, "empty_documents": 0}
        for part in parts:
            self.add(part)

    def add(self, part: Mapping[str, Any]) -> None:
        self._counts = _summed(self._counts, part)

    def facts(self) -> _Counts:
        """The manifest's entry: the most frequent characters alone, what has names by falling counts."""

        def of(name: str, value: Any) -> Any:
            if not isinstance(value, dict):
                return value
            if name in ("unknown", "marks"):
                return {key: of(key, entry) for key, entry in value.items()}
            return _most(value, _KEPT if name in ("characters", "dropped") else None)

        return {name: of(name, value) for name, value in self._counts.items()}

    def check(self, limit: float, tokenizer: str, fix: str = "give one trained on this text") -> None:
        """InputError where more than a share `limit` of the tokens are unknown or of the letters lose their mark, in a text of
        _LEAST letters or more (or of tokens, where letters were not counted)."""
        unknown, marks = self._counts["unknown"], self._counts["marks"]
        dropped = self._counts["dropped_letters"] / max(1, marks["of"])
        for share, what, help_ in (
            (_share(unknown, "tokens"), f"of the tokens are [UNK] ({_unknown_words(unknown)})", fix),
            (
                _share(marks, "letters"),
                f"of the letters lose a mark ({_scripts(marks)})",
                "train one with --strip_accents no",
            ),
            (dropped, "of the letters are dropped, as it has no [UNK]", fix),
        ):
            if share > limit and max(marks["of"], unknown["of"]) >= _LEAST:
                allowed = f"--max_unknown {math.ceil(share * 100) / 100:g}"
                raise InputError(f"tokenizer {tokenizer}: {share:.0%} {what}; {help_}, or {allowed}")


def losses_of(text: Path, tokenizer_file: Path) -> Losses:
    """What a tokenizer loses of the first documents of a text file with one on each line."""
    encoder, counts, size = Encoder(str(tokenizer_file)), Losses(), 0
    meter = Meter(encoder)
    for document in itertools.islice(read_lines(text), _SAMPLE_DOCUMENTS):
        counts.add(meter.count([document.encode()], encoder.encode([document])[0]))
        size += len(document)
        if size >= _SAMPLE_CHARACTERS:
            break
    return counts


def lines(content: Mapping[str, Any]) -> list[str]:
    """A table of what a data folder (the content of its manifest) or a tokenizer ("losses" alone) lost; empty where
    that is nothing. From WARN on a line says what helps."""
    splits = content.get("splits", {})
    rows = _tokenizer_rows(content.get("losses"))
    rows += _tokenizer_rows(splits.get("validation", {}).get("losses"), " of validation_text")
    train = splits.get("train", {})
    if cut := train.get("sentences_cut"):
        total = train.get("sentences", 0)  # of a folder that did not count them none
        what = f"{cut:,} cuts within sentences longer than a block, of {total:,}"
        rows.append(("sentences", what, cut / max(1, total), "raise --block_size, or give --packing packed"))
    for name, account in content.get("removed", {}).items():
        rows.append(("documents removed", f"{account['documents']:,} by {name}", _SOME, ""))
    for source in content.get("sources", ()):
        if dropped := source.get("dropped"):
            rows.append(("pages left out", f"{_words(dropped)} ({source['path']})", _SOME, ""))
        rows += [_source_row(name, value, source) for name, value in source.get("account", {}).items() if value]
    shown = [row for row in rows if row[2] > 0]
    said = [f"  {name:<20}{what}" + (f"; warning: {fix}" if share >= WARN else "") for name, what, share, fix in shown]
    return ["lost on the way (the manifest's losses and sources):", *said] if said else []


def _tokenizer_rows(losses: Mapping[str, Any] | None, where: str = "") -> list[_Row]:
    """What the tokenizer lost, as `Losses.facts` says."""
    if not losses:
        return []
    unknown, marks = losses["unknown"], losses["marks"]
    trained = "train the tokenizer on this text, with "
    larger = f"{trained}a larger --limit_alphabet or --vocab_size"
    pieces = "words without spaces, or parts of words: --tokenizer_type unigram or bpe"
    fix = larger if 2 * unknown.get("lost", 0) >= unknown["tokens"] else pieces
    share, bare = _share(unknown, "tokens"), _share(marks, "letters")
    rows = [
        ("[UNK]", f"{share:.2%} of the tokens{where} ({_unknown_words(unknown)})", share, fix),
        (
            "marks of letters",
            f"{bare:.2%} of the letters{where} ({_scripts(marks)})",
            bare,
            f"{trained}--strip_accents no",
        ),
    ]
    if dropped := losses["dropped"]:
        what = f"{sum(dropped.values()):,}{where} by the tokenizer; most: {_words(_most(dropped, _SHOWN))}"
        share = losses.get("dropped_letters", 0) / max(1, marks["of"])
        rows.append(("characters dropped", what, share or _SOME, larger))
    if empty := losses["empty_documents"]:
        rows.append(("documents", f"{empty:,} without a token, left out", _SOME, ""))
    if special := losses["special_tokens"]:
        what = f"{_words(special)}: written out in the text{where}, and taken as text"
        rows.append(("special tokens", what, _SOME, ""))
    return rows


def _summed(one: Mapping[str, Any], other: Mapping[str, Any]) -> _Counts:
    """A key that is in one only counts there."""
    total = dict(one)
    for name, value in other.items():
        total[name] = _summed(total.get(name, {}), value) if isinstance(value, Mapping) else total.get(name, 0) + value
    return total


def _source_row(name: str, value: Any, source: Mapping[str, Any]) -> _Row:
    share, fix = _SOME, ""
    if name == "replaced_characters":
        share, fix = value / max(1, source["text_bytes"]), "give the --encoding of the files"
    elif name == "templates":
        share = value["with_a_hole"] / max(1, value["sentences"]) or _SOME
        fix = "give what they show as templates: of the source"
    words = {"files_not_read": unread_line, "templates": templates_line}.get(name, _words)(value)
    return name.replace("_", " "), f"{words} ({source['path']})", share, fix


def _words(counts: Any) -> str:
    if isinstance(counts, Mapping):
        return ", ".join(f"{name} {_words(count)}" for name, count in counts.items())
    return f"{counts:,}" if isinstance(counts, int) else str(counts)


def _share(counts: Mapping[str, int], name: str) -> float:
    return counts[name] / max(1, counts["of"])


def _most(counts: Mapping[str, int], number: int | None = None) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:number])


def _scripts(counts: Mapping[str, Any]) -> str:
    scripts = counts.get("scripts", {})
    total = max(1, sum(scripts.values()))
    shares = {name: count / total for name, count in _most(scripts, 3).items()}
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= WARN)


def _unknown_words(unknown: Mapping[str, Any]) -> str:
    if "lost" not in unknown:
        return "which characters is not known"
    if 2 * unknown["lost"] < unknown["tokens"]:
        return "words of more than 100 characters, or without their parts in the vocabulary"
    most = (f"{character} {count:,}" for character, count in _most(unknown["characters"], _SHOWN).items())
    return f"{_scripts(unknown)}; most: {', '.join(most)}"

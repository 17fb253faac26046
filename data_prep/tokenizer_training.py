"""Trains a tokenizer on a text file: BERT's WordPiece, RoBERTa's byte-level BPE, or Unigram as SentencePiece has it."""

import collections
import functools
import itertools
import json
import math
import re
import tempfile
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer

from budget_trainer.core.errors import InputError
from data_prep.files import read_lines
from data_prep.options import Options, flag

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TYPES = ("wordpiece", "bpe", "unigram")
_BYTES = 256
_WITHOUT_CASE = [normalizers.StripAccents(), normalizers.Lowercase()]
_MAX_DISTINCT = 16e6
_COVERAGE = 0.9995  # of the characters: SentencePiece's
_WITH_ACCENTS = ("LATIN", "GREEK", "CYRILLIC", "COMBINING")  # how the names of their letters and accents begin
_ACCENTS = Regex(r"(?<=[\p{Latin}\p{Greek}\p{Cyrillic}])\p{Mn}+")
_ACCENTED = 0.1  # of the letters: Vietnamese and Czech, not French or German
_APART = normalizers.BertNormalizer(clean_text=False, strip_accents=False, lowercase=False)  # ideographs
_JOINERS, _WORD_END = "\u200c\u200d", "\u200b"  # the zero-width space of Khmer and Burmese
_CONTROLS = Regex(r"[^\P{C}\t\n\r\u200c\u200d]|\ufffd")  # what BERT takes out, without the joiners
_LONGEST = 1000  # characters of a "word" that a trainer may see: one of 300,000 is a segmentation fault in Unigram's
_TOO_LONG = re.compile(rf"\S{{{_LONGEST + 1},}}")
_SENTENCE = re.compile(r"(?<=[\u3002\uff01\uff1f\uff61\u0964\u0965\u061f\u06d4\u1362\u104b\u17d4\u17d5\u0589])")
# A run, in a script without spaces, that BERT would call one word (it sets ideographs apart); longer than it looks up.
_RUN = re.compile(r"[^\x00-\x7f\s\u2010-\u205e\u3000-\u303f\u3400-\u9fff\uf900-\ufaff\uff00-\uff65]{101,}")
_SHORTER = Regex(r".{1,90}\p{M}{0,10}")
# Where a token is a word with the space before it, so must be its mask.
_MASK = AddedToken("[MASK]", lstrip=True, normalized=False, special=True)
_SPECIAL = [*SPECIAL_TOKENS[:-1], _MASK]


_TYPES = "wordpiece is BERT's, bpe (of bytes) RoBERTa's and ModernBERT's, unigram ALBERT's and XLM-R's"
_ALPHABET = "characters with an entry (default: what covers 99.95 % of the text; bpe: all bytes)"
_STRIP = "take accents off Latin, Greek and Cyrillic letters; auto: with lowercase, where less than a tenth has one"


@dataclass(frozen=True)
class TokenizerOptions(Options):
    """What to train. strip_accents "auto": where `lowercase`, as BERT does, unless 10 % of the letters carry an accent; marks
    of other scripts always stay. limit_alphabet: what holds a rarer character becomes [UNK]; None: as many as cover 99.95 % of
    the text, at least a 32nd of the vocabulary (100 to 1000) and at most what fills three quarters of it."""

    vocab_size: int = flag(32_768, "entries, special tokens included", within=(1, 2**22))
    tokenizer_type: str = flag("wordpiece", _TYPES, TYPES)
    lowercase: bool = flag(True, "--no-lowercase for a cased model")
    limit_alphabet: int | None = flag(None, _ALPHABET)
    max_megabytes: int = flag(300, "text to read: more changes a vocabulary little")
    strip_accents: str = flag("auto", _STRIP, ("auto", "yes", "no"))

    def __post_init__(self) -> None:
        super().__post_init__()
        bpe = self.tokenizer_type == "bpe"
        least = len(SPECIAL_TOKENS) + _BYTES if bpe else 2 * len(SPECIAL_TOKENS) + 1
        if self.vocab_size < least:
            why = f" for bpe ({_BYTES} bytes and {len(SPECIAL_TOKENS)} special tokens)" if bpe else ""
            raise InputError(f"vocab_size {self.vocab_size} is too small{why}; give at least {least}")
        if bpe and self.limit_alphabet is not None:
            raise InputError(f"limit_alphabet {self.limit_alphabet}: bpe has all bytes as its alphabet; leave it out")


def train_tokenizer(file: Path, options: TokenizerOptions) -> Any:
    """A fast tokenizer with at most `vocab_size` entries, the special tokens first, whose model_max_length is 512. The same
    `file` (UTF-8, one document per line) always gives the same one, byte for byte; too few words give a smaller one."""
    survey = _Survey.of(file)
    if survey.too_long:
        number, longest = len(survey.too_long), max(survey.too_long)
        print(f"{number} words of more than {_LONGEST} characters (the longest {longest}): cut before training")
    train = {"wordpiece": _train_wordpiece, "bpe": _train_bpe, "unigram": _train_unigram}[options.tokenizer_type]
    return train(file, options, survey)


def _train_wordpiece(file: Path, options: TokenizerOptions, survey: "_Survey") -> Any:
    """A `BertTokenizer`, or where that would damage the text one with BERT's rules but for accents, joiners, NFC and words
    longer than 100 characters. (A `BertTokenizer` makes its normalizer anew when it is loaded.)"""
    from transformers import BertTokenizer

    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=options.lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    without_spaces = survey.in_runs >= 0.01
    needed = without_spaces or survey.share(f"{_JOINERS}{_WORD_END}".__contains__) >= 1e-4 or survey.composed >= 1e-4
    own = survey.letters(options, normalizers.NFD(), needed)
    if own:
        cleaning = [normalizers.Replace(_WORD_END, " "), normalizers.Replace(_CONTROLS, "")]
        backend.normalizer = normalizers.Sequence([*cleaning, _APART, *own])
    if without_spaces:
        shorter = pre_tokenizers.Split(_SHORTER, "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([backend.pre_tokenizer, shorter])
    apart = survey.ideographs if survey.share(survey.ideographs.__contains__) >= 1e-3 else set()

    def continues(character: str) -> bool:
        return _continues(character) and character not in apart

    alphabet, others = _alphabet_of(survey, backend.normalizer, options, continues)
    # The trainer numbers characters in the order of a hash table that differs from run to run, and breaks ties between
    # pairs by these numbers. "Special" tokens are numbered first, in the order given: that makes it reproducible.
    numbered = [*SPECIAL_TOKENS, *alphabet, *(f"##{character}" for character in alphabet if continues(character))]
    letters: dict[str, Any] = {"initial_alphabet": alphabet, "special_tokens": numbered[: options.vocab_size]}
    letters |= {"limit_alphabet": len(alphabet), "min_frequency": 2}
    trainer = WordPieceTrainer(vocab_size=options.vocab_size, show_progress=False, **letters)
    max_distinct = _MAX_DISTINCT if without_spaces else math.inf
    with _text_to_learn(file, None, max_distinct, bool(survey.too_long)) as text:
        backend.train([str(text)], trainer=trainer)
    vocab = backend.get_vocab()  # with room left, more characters
    more = (entry for character in others for entry in (character, f"##{character}")[: 1 + continues(character)])
    for entry in itertools.islice(more, options.vocab_size - len(vocab)):
        vocab[entry] = len(vocab)
    if own:
        learned = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))  # not with the characters as "special"
        learned.normalizer, learned.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
        learned.decoder = decoders.WordPiece()
        learned.add_special_tokens([*SPECIAL_TOKENS])
        return _wrapped(learned)
    return BertTokenizer(vocab=vocab, do_lower_case=options.lowercase, model_max_length=512)


def _train_bpe(file: Path, options: TokenizerOptions, survey: "_Survey") -> Any:
    """As ModernBERT's: NFC, RoBERTa's words, all bytes in the alphabet, so that nothing is ever unknown."""
    backend = Tokenizer(models.BPE())
    plain = [normalizers.NFD(), *_WITHOUT_CASE] if options.lowercase else [normalizers.NFC()]
    form = survey.letters(options, normalizers.NFD()) or plain
    backend.normalizer = normalizers.Sequence(form) if len(form) > 1 else form[0]
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters: dict[str, Any] = {"initial_alphabet": alphabet, "special_tokens": _SPECIAL}
    trainer = BpeTrainer(vocab_size=options.vocab_size, min_frequency=2, show_progress=False, **letters)
    with _text_to_learn(file, cut=bool(survey.too_long)) as text:
        backend.train([str(text)], trainer=trainer)
    return _wrapped(backend, processors.ByteLevel(trim_offsets=True))


def _train_unigram(file: Path, options: TokenizerOptions, survey: "_Survey") -> Any:
    """As ALBERT's and XLM-R's: NFKC, one space between words, rare characters are [UNK].

    Words end at spaces alone. Splitting at punctuation too, as BPE does, cost 14 % more tokens (5 MB of Wikipedia, 8192
    entries): the trainer begins with counts over different words, where common ones are then too rare."""
    plain = [normalizers.NFKD(), *_WITHOUT_CASE] if options.lowercase else [normalizers.NFKC()]
    form = survey.letters(options, normalizers.NFKD()) or plain
    spaces = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(left=False)]
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([*form, *spaces])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    alphabet, _ = _alphabet_of(survey, normalizers.Sequence(form), options)
    letters: dict[str, Any] = {"initial_alphabet": alphabet, "special_tokens": _SPECIAL, "unk_token": "[UNK]"}
    trainer = UnigramTrainer(vocab_size=options.vocab_size, show_progress=False, **letters)
    known, normalize = set(alphabet), normalizers.Sequence(form).normalize_str
    # The trainer gives every character that it meets an entry: it must not meet the rare ones.
    rare = {ord(letter): " " for letter in survey.characters if not known.issuperset(normalize(letter))}
    with _text_to_learn(file, rare, cut=bool(survey.too_long)) as text:
        backend.train([str(text)], trainer=trainer)
    backend.model = models.Unigram(_reproducible(json.loads(backend.to_str())["model"]["vocab"]), unk_id=1)
    return _wrapped(backend)


def _reproducible(pieces: list[list[Any]]) -> list[tuple[str, float]]:
    """The pieces of a Unigram by falling score, without what depends on the order of a hash table.

    The trainer adds characters that it had dropped above the lowest score, 0.0001 apart, in that order: all get the lowest.
    It sums in that order too: scores differ by up to 4e-11, so 3 decimals are kept."""
    scores = {piece: score for piece, score in pieces if piece not in SPECIAL_TOKENS}
    lowest = min(scores.values(), default=0.0)
    added = lowest + 1e-4 * sum(len(piece) == 1 for piece in scores)
    for piece, score in scores.items():
        scores[piece] = round(lowest if len(piece) == 1 and score <= added else score, 3)
    learned = sorted(scores.items(), key=lambda entry: (-entry[1], entry[0]))
    return [*((token, 0.0) for token in SPECIAL_TOKENS), *learned]


def _wrapped(backend: Tokenizer, *post_processors: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    ends = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    around = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
    backend.post_processor = processors.Sequence([*post_processors, around])
    names = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **names | {"mask_token": _MASK})


def _continues(character: str) -> bool:
    """Whether the character can stand inside a word for BERT, which sets punctuation apart."""
    return character.isalnum() or not (character.isascii() or unicodedata.category(character).startswith("P"))


@contextmanager
def _text_to_learn(
    file: Path, spaces: Mapping[int, str] | None = None, max_distinct: float = _MAX_DISTINCT, cut: bool = False
) -> Iterator[Path]:
    """A file with the documents, to be read at once by the trainer's threads: `file` itself, or one that is deleted in the
    end, with code points replaced by `spaces` and, where different words have more than `max_distinct` bytes (as in text
    without spaces: of 29 MB BPE took 100 times as much memory, Unigram 40), a share of the documents, spread evenly.
    cut: split words of more than 1000 characters, at ends of sentences where there are any."""
    distinct = _distinct_bytes(file) if file.stat().st_size > max_distinct else 0
    share = min(1.0, max_distinct / max(distinct, 1))
    if share < 1:
        print(f"{distinct / 1e6:.1f} MB of different words: learning from {share:.0%} of the documents, spread evenly")
    elif not spaces and not cut:
        yield file
        return
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        target = Path(folder) / "text"
        with target.open("w", encoding="utf-8", newline="\n") as out:
            for number, line in enumerate(read_lines(file)):
                if int((number + 1) * share) > int(number * share):
                    line = line.translate(spaces or {})
                    out.write((_TOO_LONG.sub(_in_pieces, line) if cut else line) + "\n")
        yield target


def _in_pieces(word: re.Match[str]) -> str:
    sentences = _SENTENCE.split(word[0])
    starts = ((text, start) for text in sentences for start in range(0, len(text), _LONGEST))
    return "\n".join(text[start : start + _LONGEST] for text, start in starts)


@dataclass
class _Survey:
    """What a text holds. characters: how often each, after NFC. too_long: the lengths of words beyond _LONGEST. For each
    letter or mark: composed, how many fewer characters after NFC; in_runs, how many in runs that BERT could not look up."""

    characters: "collections.Counter[str]"
    too_long: list[int]
    composed: float
    in_runs: float

    @classmethod
    def of(cls, file: Path) -> "_Survey":
        counts = np.zeros(0x110000, np.int64)
        too_long: list[int] = []
        composed = in_runs = 0
        with file.open(encoding="utf-8", newline="\n") as lines:
            while text := "".join(lines.readlines(1 << 22)):
                plain = unicodedata.normalize("NFC", text)
                composed += abs(len(text) - len(plain))
                points = np.frombuffer(plain.encode("utf-32-le"), np.uint32)
                counts += np.bincount(points, minlength=len(counts))
                longest = max(map(len, text.split()), default=0)
                in_runs += sum(map(len, _RUN.findall(text))) if longest > 100 else 0
                too_long += map(len, _TOO_LONG.findall(text)) if longest > _LONGEST else []
        counts[ord("\n")] = 0
        characters = collections.Counter({chr(point): int(counts[point]) for point in np.flatnonzero(counts)})
        survey = cls(characters, too_long, 0, 0)
        survey.composed, survey.in_runs = composed / survey._letters, in_runs / survey._letters
        return survey

    @functools.cached_property
    def _letters(self) -> int:
        return max(1, sum(n for character, n in self.characters.items() if unicodedata.category(character)[0] in "LM"))

    def share(self, kind: Callable[[str], bool]) -> float:
        """Occurrences of the characters of a kind for each letter or mark."""
        return sum(count for character, count in self.characters.items() if kind(character)) / self._letters

    @functools.cached_property
    def ideographs(self) -> set[str]:
        """Those that BERT sets apart from the characters around them."""
        isolated = (character for character in self.characters if " " in _APART.normalize_str(f"x{character}"))
        return {*isolated} - {" "}

    def letters(self, options: TokenizerOptions, decomposed: Any, needed: bool = False) -> list[Any]:
        """The normalizers that lower case and take accents away, and nothing else; none where they are not `needed`: where
        BERT's rules, which take all marks away with the case, or none, do as well."""
        wish, marks, accents = options.strip_accents, self.share(_has_mark), self.share(_has_accent)
        usual = wish in ("auto", "yes" if options.lowercase else "no")
        harmless = marks < 1e-3 and (accents < _ACCENTED or wish == "yes")
        if usual and (harmless or not options.lowercase) and not needed:
            return []
        strip = wish == "yes" or wish == "auto" and options.lowercase
        if strip and wish == "auto" and accents >= _ACCENTED:
            how = "--strip_accents yes takes them off"
            print(f"{accents:.0%} of the letters carry an accent: accents stay ({how})")
            strip = False
        stripped = [normalizers.Replace(_ACCENTS, "")] if strip else []
        lowered = [normalizers.Lowercase()] if options.lowercase else []
        return [decomposed, *stripped, *lowered, normalizers.NFC()]


def _has_mark(character: str) -> bool:
    """Whether BERT would take off it what is no accent: a mark of a script but the three. (An emoji's does not count.)"""
    return _is_stripped(character) and not unicodedata.name(character, "").startswith((*_WITH_ACCENTS, "VARIATION"))


def _has_accent(character: str) -> bool:
    return _is_stripped(character) and unicodedata.name(character, "").startswith(_WITH_ACCENTS)


def _is_stripped(character: str) -> bool:
    return unicodedata.category(character) == "Mn" or unicodedata.normalize("NFD", character) != character


def _alphabet_of(
    survey: _Survey, normalizer: Any, options: TokenizerOptions, twice: Callable[[str], bool] = lambda character: False
) -> tuple[list[str], list[str]]:
    """The characters with an entry, after normalisation, in the order of their code points, and those for which there may be
    room, most frequent first. twice: those with two entries."""
    counts = collections.Counter[str]()
    for character, count in survey.characters.items():
        for part in normalizer.normalize_str(character).replace(" ", ""):
            counts[part] += count
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    size, most = options.vocab_size, options.vocab_size - len(SPECIAL_TOKENS)
    entries = list(itertools.accumulate(1 + twice(character) for character in ranked))
    if (limit := options.limit_alphabet) is not None:
        limit = min(limit, bisect_right(entries, most))
    else:
        covered = list(itertools.accumulate(counts[character] for character in ranked))
        needed = bisect_left(covered, _COVERAGE * counts.total()) + 1
        limit = max(min(100, size // 4), min(1000, size // 32), needed)
        if (fit := bisect_right(entries, min(size * 3 // 4, most))) < min(limit, len(ranked)):
            share, enough = covered[fit - 1] / counts.total(), -(-entries[needed - 1] * 4 // 3)
            which = f"{needed} characters make {_COVERAGE:.2%} of the text"
            print(f"{which}; --vocab_size {size} keeps {fit} ({share:.1%}): give --vocab_size {enough} or more")
            limit = fit
    return sorted(ranked[:limit]), [] if options.limit_alphabet else ranked[limit:]


def _distinct_bytes(file: Path) -> int:
    """UTF-8 bytes of the different runs of letters and digits."""
    seen: set[int] = set()  # hashes: a set of the words would take several times the memory
    size = 0
    for line in read_lines(file):
        new = {hash(word): len(word.encode()) for word in re.findall(r"\w+", line)}
        size += sum(length for word, length in new.items() if word not in seen)
        seen.update(new)
    return size

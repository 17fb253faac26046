"""Trains a tokenizer on a text file: BERT's WordPiece, RoBERTa's byte-level BPE, or Unigram as SentencePiece has it."""

import collections
import itertools
import json
import re
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer

from budget_trainer.core.errors import InputError
from data_prep.files import read_lines
from data_prep.options import Options, flag

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TYPES = ("wordpiece", "bpe", "unigram")
_BYTES = 256
_WITHOUT_CASE = [normalizers.StripAccents(), normalizers.Lowercase()]
# Where a token is a word with the space before it, so must be its mask.
_MASK = AddedToken("[MASK]", lstrip=True, normalized=False, special=True)
_SPECIAL = [*SPECIAL_TOKENS[:-1], _MASK]


_TYPES = "wordpiece is BERT's, bpe (of bytes) RoBERTa's and ModernBERT's, unigram ALBERT's and XLM-R's"
_ALPHABET = "characters with an entry (default: a 32nd of the vocabulary; bpe: all bytes)"


@dataclass(frozen=True)
class TokenizerOptions(Options):
    """What to train. lowercase takes accents away too, as BERT does. limit_alphabet: what holds a rarer character becomes
    [UNK]; None: a 32nd of the vocabulary, 100 to 1000."""

    vocab_size: int = flag(32_768, "entries, special tokens included")
    tokenizer_type: str = flag("wordpiece", _TYPES, TYPES)
    lowercase: bool = flag(True, "--no-lowercase for a cased model")
    limit_alphabet: int | None = flag(None, _ALPHABET)
    max_megabytes: int = flag(300, "text to read: more changes a vocabulary little")

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
    if options.tokenizer_type == "bpe":
        return _train_bpe(file, options.vocab_size, options.lowercase)
    limit = options.limit_alphabet or max(min(100, options.vocab_size // 4), min(1000, options.vocab_size // 32))
    train = _train_wordpiece if options.tokenizer_type == "wordpiece" else _train_unigram
    return train(file, options.vocab_size, options.lowercase, limit)


def _train_wordpiece(file: Path, vocab_size: int, lowercase: bool, limit: int) -> Any:
    """A `BertTokenizer`. On English Wikipedia and 8192 entries an alphabet of a 32nd gave 2 % fewer tokens than one of 1000
    characters, with 0.07 % instead of 0.05 % [UNK]."""
    from transformers import BertTokenizer

    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    alphabet = _alphabet_of(file, backend.normalizer, limit)
    # The trainer numbers characters in the order of a hash table that differs from run to run, and breaks ties between
    # pairs by these numbers. "Special" tokens are numbered first, in the order given: that makes it reproducible.
    numbered = [*SPECIAL_TOKENS, *alphabet, *(f"##{character}" for character in alphabet if _continues(character))]
    letters: dict[str, Any] = {"initial_alphabet": alphabet, "special_tokens": numbered[:vocab_size]}
    letters |= {"limit_alphabet": len(alphabet), "min_frequency": 2}
    trainer = WordPieceTrainer(vocab_size=vocab_size, show_progress=False, **letters)
    backend.train([str(file)], trainer=trainer)
    return BertTokenizer(vocab=backend.get_vocab(), do_lower_case=lowercase, model_max_length=512)


def _train_bpe(file: Path, vocab_size: int, lowercase: bool) -> Any:
    """As ModernBERT's: NFC, RoBERTa's words, all bytes in the alphabet, so that nothing is ever unknown."""
    backend = Tokenizer(models.BPE())
    without_case = normalizers.Sequence([normalizers.NFD(), *_WITHOUT_CASE])
    backend.normalizer = without_case if lowercase else normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters: dict[str, Any] = {"initial_alphabet": alphabet, "special_tokens": _SPECIAL}
    trainer = BpeTrainer(vocab_size=vocab_size, min_frequency=2, show_progress=False, **letters)
    with text_to_learn(file) as text:
        backend.train([str(text)], trainer=trainer)
    return _wrapped(backend, processors.ByteLevel(trim_offsets=True))


def _train_unigram(file: Path, vocab_size: int, lowercase: bool, limit: int) -> Any:
    """As ALBERT's and XLM-R's: NFKC, one space between words, rare characters are [UNK].

    Words end at spaces alone. Splitting at punctuation too, as BPE does, cost 14 % more tokens (5 MB of Wikipedia, 8192
    entries): the trainer begins with counts over different words, where common ones are then too rare."""
    form = [normalizers.NFKD(), *_WITHOUT_CASE] if lowercase else [normalizers.NFKC()]
    spaces = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(left=False)]
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([*form, *spaces])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    alphabet = _alphabet_of(file, normalizers.Sequence(form), limit)
    letters: dict[str, Any] = {"initial_alphabet": alphabet, "special_tokens": _SPECIAL, "unk_token": "[UNK]"}
    trainer = UnigramTrainer(vocab_size=vocab_size, show_progress=False, **letters)
    known, normalize = set(alphabet), normalizers.Sequence(form).normalize_str
    # The trainer gives every character that it meets an entry: it must not meet the rare ones.
    rare = {ord(letter): " " for letter in _characters_of(file) if not known.issuperset(normalize(letter))}
    with text_to_learn(file, rare) as text:
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
    """Whether BERT's pre-tokenizer can leave the character inside a word: it sets punctuation and ideographs apart."""
    return character.isalnum() or not (character.isascii() or unicodedata.category(character).startswith("P"))


@contextmanager
def text_to_learn(file: Path, spaces: Mapping[int, str] | None = None, max_distinct: float = 16e6) -> Iterator[Path]:
    """A file with the documents, to be read at once by the trainer's threads: `file` itself, or one that is deleted in the
    end, with code points replaced by `spaces` and, where different words have more than `max_distinct` bytes (as in text
    without spaces: of 29 MB BPE took 100 times as much memory, Unigram 40), a share of the documents, spread evenly."""
    distinct = _distinct_bytes(file) if file.stat().st_size > max_distinct else 0
    share = min(1.0, max_distinct / max(distinct, 1))
    if share < 1:
        print(f"{distinct / 1e6:.1f} MB of different words: learning from {share:.0%} of the documents, spread evenly")
    elif not spaces:
        yield file
        return
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        target = Path(folder) / "text"
        with target.open("w", encoding="utf-8", newline="\n") as out:
            for number, line in enumerate(read_lines(file)):
                if int((number + 1) * share) > int(number * share):
                    out.write(line.translate(spaces or {}) + "\n")
        yield target


def _characters_of(file: Path) -> "collections.Counter[str]":
    return collections.Counter(itertools.chain.from_iterable(read_lines(file)))


def _alphabet_of(file: Path, normalizer: Any, limit: int) -> list[str]:
    """The `limit` most frequent characters after normalisation, in the order of their code points."""
    counts = collections.Counter[str]()
    for character, count in _characters_of(file).items():
        for part in normalizer.normalize_str(character).replace(" ", ""):
            counts[part] += count
    return sorted(sorted(counts, key=lambda character: (-counts[character], character))[:limit])


def _distinct_bytes(file: Path) -> int:
    """UTF-8 bytes of the different runs of letters and digits."""
    seen: set[int] = set()  # hashes: a set of the words would take several times the memory
    size = 0
    for line in read_lines(file):
        new = {hash(word): len(word.encode()) for word in re.findall(r"\w+", line)}
        size += sum(length for word, length in new.items() if word not in seen)
        seen.update(new)
    return size

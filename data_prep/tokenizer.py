"""Trains a WordPiece tokenizer with BERT's normaliser on any corpus the readers know; loads the tokenizers of others.

python -m data_prep.tokenizer --input corpus.txt --vocab_size 8192 --output_dir tokenizer
"""

import argparse
import collections
import shutil
import sys
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from budget_trainer.errors import InputError
from data_prep.cli import Parser, add_source_flags, positive, run, source_of
from data_prep.manifest import written_aside

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROLES = ("pad", "cls", "sep", "mask")


def train_wordpiece(file: Path, vocab_size: int, lowercase: bool = True, limit_alphabet: int | None = None) -> Any:
    """A `BertTokenizer` with at most `vocab_size` entries, special tokens included, whose model_max_length is 512.

    file: UTF-8 text, one document per line. limit_alphabet: characters that get an entry (words with a rarer one
    become [UNK]); None: a 32nd of the vocabulary, 100 to 1000. On English Wikipedia and 8192 entries that gave 2 %
    fewer tokens than 1000 characters, with 0.07 % instead of 0.05 % [UNK]. Too few words give a smaller vocabulary.
    The same text always gives the same tokenizer."""
    from transformers import BertTokenizer

    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    limit = limit_alphabet or max(min(100, vocab_size // 4), min(1000, vocab_size // 32))
    alphabet = _alphabet(file, backend.normalizer, limit)
    # The trainer numbers characters in the order of a hash table that differs from run to run, and breaks ties between
    # pairs by these numbers. "Special" tokens are numbered first, in the order given: that makes it reproducible.
    numbered = [*SPECIAL_TOKENS, *alphabet, *(f"##{character}" for character in alphabet if _continues(character))]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=numbered[:vocab_size],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    backend.train([str(file)], trainer=trainer)
    return BertTokenizer(vocab=backend.get_vocab(), do_lower_case=lowercase, model_max_length=512)


def _alphabet(file: Path, normalizer: Any, limit: int) -> list[str]:
    """The `limit` most frequent characters after normalisation, in the order of their code points."""
    raw: collections.Counter[str] = collections.Counter()
    with file.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            raw.update(line)
    counts: collections.Counter[str] = collections.Counter()
    for character, count in raw.items():
        for part in normalizer.normalize_str(character).replace(" ", ""):
            counts[part] += count
    return sorted(sorted(counts, key=lambda character: (-counts[character], character))[:limit])


def _continues(character: str) -> bool:
    """Whether BERT's pre-tokenizer can leave the character inside a word: it sets punctuation and ideographs apart."""
    return character.isalnum() or not (character.isascii() or unicodedata.category(character).startswith("P"))


def load_tokenizer(name: str) -> Any:
    """A fast tokenizer from a folder (save_pretrained's, or one with a single *tokenizer.json), a tokenizer.json, a
    BERT vocab.txt, or a name on the Hub. No remote code. InputError: none there, or one without the special tokens
    that masking needs."""
    from transformers import AutoTokenizer

    path = Path(name)
    local = path.is_absolute() or name.startswith(".") or ("/" in name and path.parent.exists())
    if local and not path.exists():
        raise InputError(f"tokenizer {name!r}: no such file or folder; give one that exists or a Hub name")
    try:
        if path.is_dir() and not (path / "tokenizer_config.json").exists():
            tokenizer = _from_file(_only_file(path))
        elif path.is_file():
            tokenizer = _from_file(path)
        else:
            tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=path.is_dir(), trust_remote_code=False)
    except InputError:
        raise
    except Exception as error:  # the libraries raise OSError, ValueError, KeyError and bare Exception here
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"tokenizer {name!r} cannot be loaded ({reason}); give a folder, a file or a Hub name"
        ) from error
    missing = [role for role in _ROLES if getattr(tokenizer, f"{role}_token_id") is None]
    if missing or not tokenizer.is_fast:
        wanted = f"has no {missing[0]} token" if missing else "is not a fast one"
        raise InputError(f"tokenizer {name!r} {wanted}; give a fast tokenizer with pad, cls, sep and mask tokens")
    return tokenizer


def special_ids(tokenizer: Any) -> dict[str, int]:
    """Token ids by role: pad, cls, sep, mask and, where there is one, unk."""
    roles = {role: getattr(tokenizer, f"{role}_token_id") for role in ("pad", "unk", "cls", "sep", "mask")}
    return {role: int(token_id) for role, token_id in roles.items() if token_id is not None}


def _only_file(folder: Path) -> Path:
    found = sorted(folder.glob("*tokenizer.json")) or sorted(folder.glob("*vocab.txt"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise InputError(
            f"tokenizer {folder}: one *tokenizer.json or *vocab.txt is needed, found {names}; name the file"
        )
    return found[0]


def _from_file(file: Path) -> Any:
    from transformers import BertTokenizer, PreTrainedTokenizerFast

    if file.suffix == ".txt":
        entries = file.read_text(encoding="utf-8").split("\n")
        vocab = {entry.rstrip("\r"): i for i, entry in enumerate(entries) if entry.strip()}
        cased = any(entry != entry.lower() for entry in vocab if not entry.startswith("["))
        print(f"{file}: a {'cased' if cased else 'lowercase'} vocabulary")
        return BertTokenizer(vocab=vocab, do_lower_case=not cased, model_max_length=512)
    backend = Tokenizer.from_file(str(file))
    vocab = backend.get_vocab()
    styles = (
        {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
        {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"},
    )
    style = max(styles, key=lambda names: sum(token in vocab for token in names.values()))
    named = {f"{role}_token": token for role, token in style.items() if token in vocab}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **named)


def _copy_text(documents: Iterable[str], file: Path, max_bytes: float) -> None:
    """Writes one document per line until `max_bytes`: the text is read twice, and not every source can be."""
    size = 0
    with file.open("wb") as out:
        for document in documents:
            size += out.write(document.encode() + b"\n")
            if size >= max_bytes:
                print(f"stopped reading at --max_megabytes {max_bytes / 1e6:g}")
                return


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0] if __doc__ else None)
    add_source_flags(parser)
    add = parser.add_argument
    add("--output_dir", type=Path, required=True, help="folder of the tokenizer")
    add("--vocab_size", type=positive, default=8192, help="entries, special tokens included")
    add("--lowercase", action=argparse.BooleanOptionalAction, default=True, help="--no-lowercase for a cased model")
    add(
        "--limit_alphabet",
        type=positive,
        default=None,
        help="characters with an entry (default: a 32nd of the vocabulary)",
    )
    add("--max_megabytes", type=positive, default=300, help="text to read: more changes a vocabulary little")
    add("--overwrite", action="store_true", help="replace an existing tokenizer")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run(lambda: _main(argv))


def _main(argv: list[str] | None) -> None:
    args = _parse(argv)
    if args.vocab_size <= 2 * len(SPECIAL_TOKENS):
        raise InputError(f"vocab_size {args.vocab_size} is too small; give at least {2 * len(SPECIAL_TOKENS) + 1}")
    with written_aside(args.output_dir, args.overwrite, "tokenizer", "tokenizer.json") as folder:
        cache = Path(tempfile.mkdtemp(dir=folder))
        sources = [source_of(args, path, cache) for path in args.input]
        _copy_text(
            (text for source in sources for text in source.documents()), cache / "text", args.max_megabytes * 1e6
        )
        tokenizer = train_wordpiece(cache / "text", args.vocab_size, args.lowercase, args.limit_alphabet)
        shutil.rmtree(cache)
        tokenizer.save_pretrained(folder)
    smaller = "" if len(tokenizer) == args.vocab_size else f" (--vocab_size {args.vocab_size}: the corpus has no more)"
    print(f"{args.output_dir}: {len(tokenizer)} entries{smaller}")


if __name__ == "__main__":
    sys.exit(main())

"""Trains a tokenizer (WordPiece, BPE or Unigram) on any corpus the readers know; loads the tokenizers of others.

python -m data_prep.tokenizer --input corpus.txt --vocab_size 8192 --output_dir tokenizer
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from budget_trainer.core.command import run_command
from budget_trainer.core.errors import InputError
from data_prep.cli import Parser, add_source_flags, positive, source_of
from data_prep.manifest import written_aside
from data_prep.tokenizer_training import TYPES, TokenizerToTrain, train_tokenizer

_ROLES = ("pad", "cls", "sep", "mask")


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
    parser = Parser("tokenizer", __doc__.splitlines()[0] if __doc__ else None)
    add_source_flags(parser)
    add = parser.add_argument
    add("--output_dir", type=Path, required=True, help="folder of the tokenizer")
    kinds = "wordpiece is BERT's, bpe (of bytes) RoBERTa's and ModernBERT's, unigram ALBERT's and XLM-R's"
    add("--tokenizer_type", choices=TYPES, default=TYPES[0], help=kinds)
    add("--vocab_size", type=positive, default=8192, help="entries, special tokens included")
    add("--lowercase", action=argparse.BooleanOptionalAction, default=True, help="--no-lowercase for a cased model")
    add(
        "--limit_alphabet",
        type=positive,
        default=None,
        help="characters with an entry (default: a 32nd of the vocabulary; bpe: all bytes)",
    )
    add("--max_megabytes", type=positive, default=300, help="text to read: more changes a vocabulary little")
    add("--overwrite", action="store_true", help="replace an existing tokenizer")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_command(lambda: _main(argv))


def _main(argv: list[str] | None) -> None:
    args = _parse(argv)
    options = TokenizerToTrain(**{field: getattr(args, field) for field in TokenizerToTrain.__dataclass_fields__})
    with written_aside(args.output_dir, args.overwrite, "tokenizer", "tokenizer.json") as folder:
        cache = Path(tempfile.mkdtemp(dir=folder))
        sources = [source_of(args, path, cache) for path in args.input]
        _copy_text(
            (text for source in sources for text in source.documents()), cache / "text", args.max_megabytes * 1e6
        )
        tokenizer = train_tokenizer(cache / "text", options)
        shutil.rmtree(cache)
        tokenizer.save_pretrained(folder)
    smaller = "" if len(tokenizer) == args.vocab_size else f" (--vocab_size {args.vocab_size}: the corpus has no more)"
    print(f"{args.output_dir}: {len(tokenizer)} entries{smaller}")


if __name__ == "__main__":
    sys.exit(main())

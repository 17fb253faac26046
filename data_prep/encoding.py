"""Tokenizers: loading those of others, and text -> token ids, fast."""

import json
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from budget_trainer.core.errors import InputError

I64 = NDArray[np.int64]

_ROLES = ("pad", "cls", "sep", "mask")
# Of BERT's parts each treats what stands between spaces and ASCII punctuation on its own; other tokenizers' may not.
_WORDWISE = (("normalizer", "BertNormalizer"), ("pre_tokenizer", "BertPreTokenizer"), ("model", "WordPiece"))
_WORDS = re.compile(r"[^ !-/:-@\[-`{-~]+|[!-/:-@\[-`{-~]").findall
_MAX_WORDS = 500_000  # about 150 MB in each process


def load_tokenizer(name: str) -> Any:
    """A fast tokenizer from a folder (save_pretrained's, or one with a single *tokenizer.json), a tokenizer.json, a BERT
    vocab.txt, or a name on the Hub. InputError: none there, or one without the special tokens that masking needs."""
    from transformers import AutoTokenizer

    path = Path(name)
    local = path.is_absolute() or name.startswith(".") or ("/" in name and path.parent.exists())
    if local and not path.exists():
        raise InputError(f"tokenizer {name!r}: no such file or folder; give one that exists or a Hub name")
    if path.is_dir() and not (path / "tokenizer_config.json").exists():
        found = sorted(path.glob("*tokenizer.json")) or sorted(path.glob("*vocab.txt"))
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            needed = "one *tokenizer.json or *vocab.txt is needed"
            raise InputError(f"tokenizer {path}: {needed}, found {names}; name the file")
        path = found[0]
    try:
        if path.is_file():
            tokenizer = _from_file(path)
        else:
            tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=path.is_dir(), trust_remote_code=False)
    except Exception as error:  # the libraries raise OSError, ValueError, KeyError and bare Exception here
        reason = str(error).strip().split("\n")[0]
        fix = "give a folder, a file or a Hub name"
        raise InputError(f"tokenizer {name!r} cannot be loaded ({reason}); {fix}") from error
    missing = [role for role in _ROLES if getattr(tokenizer, f"{role}_token_id") is None]
    if missing or not tokenizer.is_fast:
        wanted = f"has no {missing[0]} token" if missing else "is not a fast one"
        raise InputError(f"tokenizer {name!r} {wanted}; give a fast tokenizer with pad, cls, sep and mask tokens")
    return tokenizer


def special_ids(tokenizer: Any) -> dict[str, int]:
    """Token ids by role: pad, cls, sep, mask and, where there is one, unk."""
    roles = {role: getattr(tokenizer, f"{role}_token_id") for role in ("pad", "unk", "cls", "sep", "mask")}
    return {role: int(token_id) for role, token_id in roles.items() if token_id is not None}


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
    styles = ("[PAD] [UNK] [CLS] [SEP] [MASK]".split(), "<pad> <unk> <s> </s> <mask>".split())
    style = max(styles, key=lambda names: sum(token in vocab for token in names))
    roles = zip(("pad", "unk", "cls", "sep", "mask"), style, strict=True)
    named = {f"{role}_token": token for role, token in roles if token in vocab}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **named)


class Encoder:
    """Token ids of whole documents, without special tokens, truncation or padding: exactly those of the tokenizer, `backend`.

    BERT's work word by word, and most words were seen before: looking them up doubles the speed (46 MB of Wikipedia)."""

    def __init__(self, tokenizer_file: str) -> None:
        self.backend = Tokenizer.from_file(tokenizer_file)
        self.backend.no_truncation()
        self.backend.no_padding()
        content = json.loads(self.backend.to_str())
        self._added = [token["content"] for token in content["added_tokens"]]
        self._words: dict[str, tuple[int, ...]] | None = {} if _is_wordwise(content) else None

    def encode(self, documents: Sequence[str]) -> list[I64]:
        """The ids of each document: int64 [tokens]."""
        if self._words is None or any(token in document for document in documents for token in self._added):
            # Also where somebody wrote out "[MASK]": that is one token, not three words.
            return [np.array(ids, np.int64) for ids in self._backend_ids(documents)]
        split = [_WORDS(document) for document in documents]
        if len(self._words) > _MAX_WORDS:
            self._words.clear()
        new = [word for word in set(chain.from_iterable(split)) if word not in self._words]
        self._words.update(zip(new, map(tuple, self._backend_ids(new)), strict=True))
        ids_of = self._words.__getitem__
        return [np.fromiter(chain.from_iterable(map(ids_of, words)), np.int64) for words in split]

    def _backend_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def _is_wordwise(content: dict[str, Any]) -> bool:
    # The first tokenizer.json files name no type for their model; a WordPiece has this prefix.
    types = ((content[part] or {}).get("type") for part, _ in _WORDWISE)
    plain = all(kind in (name, None) for kind, (_, name) in zip(types, _WORDWISE, strict=True))
    model = content["model"]
    exact = all(token["special"] and not token["normalized"] for token in content["added_tokens"])
    return plain and exact and bool(content["normalizer"]) and "continuing_subword_prefix" in model

"""Tokenizers: loading those of others, and text -> token ids, fast."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from budget_trainer.core.errors import InputError
from budget_trainer.data.whole_words import check_not_sentencepiece

I64 = NDArray[np.int64]

# What a class that makes its normalizer anew may read otherwise than its tokenizer.json.
_SAMPLES = (
    "It is Paris.",
    "Caf\u00e9 \u00dcn\u00ef",
    "\u092e\u0947\u0902 \u30d1\u30f3\u30c0",
    "\u4e2d\u6587 \ud55c\uad6d\uc5b4",
    "a\u200cb [X]",
)
_STYLES = ("[PAD] [UNK] [CLS] [SEP] [MASK]".split(), "<pad> <unk> <s> </s> <mask>".split())
_ROLES = ("pad", "cls", "sep", "mask")
# Of BERT's parts each treats what stands between spaces and ASCII punctuation on its own; other tokenizers' may not.
_WORDWISE = (("normalizer", "BertNormalizer"), ("pre_tokenizer", "BertPreTokenizer"), ("model", "WordPiece"))
_WORDS = re.compile(r"[^ !-/:-@\[-`{-~]+|[!-/:-@\[-`{-~]").findall
_MAX_WORDS = 500_000  # about 150 MB in each process


def load_tokenizer(name: str) -> Any:
    """A fast tokenizer from a folder (save_pretrained's, or one with a single *tokenizer.json), a tokenizer.json, a BERT
    vocab.txt, or a name on the Hub. InputError: none there, or one without the special tokens that masking needs, each with
    an id of its own."""
    from transformers import AutoTokenizer

    path = Path(name)
    local = path.is_absolute() or name.startswith(".") or ("/" in name and path.parent.exists())
    if local and not path.exists():
        raise InputError(f"tokenizer {name!r}: no such file or folder; give one that exists or a Hub name")
    check_not_sentencepiece(path)
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
    roles: dict[int, str] = {}
    for role, number in special_ids(tokenizer).items():
        if number in roles:
            both = f"{roles[number]} and {role} are both {tokenizer.convert_ids_to_tokens(number)!r} (id {number})"
            raise InputError(
                f"tokenizer {name!r}: {both}; give each a token of its own (tokenizer.{role}_token = ...)"
            )
        roles[number] = role
    try:
        read = {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in _SAMPLES}
    except Exception as error:  # bare ones, as where the vocabulary lacks [UNK]
        raise InputError(f"tokenizer {name!r} cannot be used ({error}); mend it, or give another") from error
    if (path / "tokenizer.json").is_file():
        own = Tokenizer.from_file(str(path / "tokenizer.json"))
        own.no_truncation()
        own.no_padding()
        differs = (text for text, ids in read.items() if own.encode(text, add_special_tokens=False).ids != ids)
        if text := next(differs, None):
            what = f"its class {type(tokenizer).__name__} reads {text!r} otherwise than its tokenizer.json"
            print(f"warning: tokenizer {name!r}: {what}; the class's reading is used")
    return tokenizer


def special_ids(tokenizer: Any) -> dict[str, int]:
    """Token ids by role: pad, cls, sep, mask and, where there is one, unk."""
    roles = {role: getattr(tokenizer, f"{role}_token_id") for role in ("pad", "unk", "cls", "sep", "mask")}
    return {role: int(token_id) for role, token_id in roles.items() if token_id is not None}


def _from_file(file: Path) -> Any:
    from transformers import BertTokenizer, PreTrainedTokenizerFast

    if file.suffix == ".txt":
        return BertTokenizer(**_read_vocab(file), model_max_length=512)
    content = json.loads(file.read_text(encoding="utf-8-sig"))
    vocab = Tokenizer.from_str(json.dumps(content)).get_vocab()
    style = max(_STYLES, key=lambda names: sum(token in vocab for token in names))
    for token in content["added_tokens"]:
        token["special"] |= token["content"] in style  # also where it was added as a word
    backend = Tokenizer.from_str(json.dumps(content))
    roles = zip(("pad", "unk", "cls", "sep", "mask"), style, strict=True)
    named = {f"{role}_token": token for role, token in roles if token in vocab}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **named)


def _read_vocab(file: Path) -> dict[str, Any]:
    """What `BertTokenizer` needs for a vocab.txt: the number of a line is an id, also where lines are blank or the same."""
    lines = [line.removesuffix("\r") for line in file.read_text(encoding="utf-8-sig").split("\n")]
    vocab: dict[str, int] = {}
    unused = []
    for number, line in enumerate(lines):
        if line in vocab:  # the later one counts, as in BERT's own reader
            unused.append(f"line {number + 1} repeats line {vocab[line] + 1} ({line!r})")
        if line:
            vocab[line] = number
    if missing := [token for token in _STYLES[0] if token not in vocab]:
        raise ValueError(f"no vocabulary of BERT's: it has no line {missing[0]}")
    if blank := sum(not line for line in lines[: max(vocab.values(), default=0)]):
        unused.append(f"{blank} blank lines")
    if unused:
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        print(f"{file}: {', '.join(unused[:3])}{more}: their ids stay unused")
    words = [line for line in vocab if not line.startswith("[")]
    cased = any(word != word.lower() for word in words)
    stays = sum(_without_marks(word) != word for word in words) * 1000 > len(vocab)
    kind = "cased" if cased else "lowercase" if any(word != word.upper() for word in words) else "caseless"
    print(f"{file}: a {kind} vocabulary{' with accents and marks, which stay' if stays and not cased else ''}")
    return {"vocab": vocab, "do_lower_case": not cased, "strip_accents": False if stays and not cased else None}


def _without_marks(word: str) -> str:
    """As BERT's lower-casing leaves it: it takes Hangul syllables apart too."""
    return "".join(part for part in unicodedata.normalize("NFD", word) if unicodedata.category(part) != "Mn")


class Encoder:
    """Token ids of whole documents, without special tokens, truncation or padding: exactly those of the tokenizer with
    `split_special_tokens`, `backend`: "[SEP]" in a text is text and never the id that ends a sequence.

    BERT's work word by word, and most words were seen before: looking them up doubles the speed (46 MB of Wikipedia).
    unknown: the id of [UNK]; None: there is none. special_starts: the first characters of special tokens, in UTF-8."""

    def __init__(self, tokenizer_file: str) -> None:
        given = json.loads(Path(tokenizer_file).read_text(encoding="utf-8"))
        self._special = [token["content"] for token in given["added_tokens"] if token["special"]]
        self.special_starts = sorted({token[0].encode() for token in self._special})
        self.backend = Tokenizer.from_str(json.dumps(_all_as_text(given, {*self._special})))
        self.backend.no_truncation()
        self.backend.no_padding()
        content = json.loads(self.backend.to_str())
        model = content["model"]
        self.unknown: int | None = model.get("unk_id")
        if (name := model.get("unk_token")) is not None:
            self.unknown = self.backend.token_to_id(name)
        self._is_unknown: dict[str, bool] = {}
        self._words: dict[str, tuple[int, ...]] | None = {} if _is_wordwise(content) else None

    def encode(self, documents: Sequence[str]) -> list[I64]:
        """The ids of each document: int64 [tokens]."""
        if self._words is None:
            return [np.array(ids, np.int64) for ids in self._backend_ids(documents)]
        split = [_WORDS(document) for document in documents]
        if len(self._words) > _MAX_WORDS:
            self._words.clear()
        new = [word for word in set(chain.from_iterable(split)) if word not in self._words]
        self._words.update(zip(new, map(tuple, self._backend_ids(new)), strict=True))
        ids_of = self._words.__getitem__
        return [np.fromiter(chain.from_iterable(map(ids_of, words)), np.int64) for words in split]

    def is_unknown(self, character: str) -> bool:
        """Whether the character alone gives [UNK]."""
        if character not in self._is_unknown:
            self._is_unknown[character] = self.unknown in self._backend_ids([character])[0]
        return self._is_unknown[character]

    def special_tokens(self, documents: Iterable[str]) -> Counter[str]:
        """How often each special token is written out in the documents, where it is text."""
        found = ((token, document.count(token)) for document in documents for token in self._special)
        counts = Counter[str]()
        for token, number in found:
            counts[token] += number
        return +counts

    def _backend_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def _all_as_text(content: dict[str, Any], special: set[str]) -> dict[str, Any]:
    """A tokenizer.json without special tokens. A model that has them as pieces (Unigram's score is the best) must not find
    them either: they get names that no text has, and keep their ids."""
    model = content["model"]
    own = set(model["vocab"] if isinstance(model["vocab"], dict) else (piece for piece, _ in model["vocab"]))
    # The library counts the ids of added words on from what stands before them: that keeps its place under such a name, too.
    last = max((token["id"] for token in content["added_tokens"] if not token["special"]), default=-1)
    kept = (t for t in content["added_tokens"] if not t["special"] or (t["content"] not in own and t["id"] < last))
    nameless = {"special": False, "normalized": False}
    content["added_tokens"] = [
        {**token, **nameless, "content": f"\uffff{token['content']}"} if token["special"] else token for token in kept
    ]
    made = {"".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in model.get("merges", [])}
    hidden = {token: f"\uffff{token}" for token in special - made}
    if isinstance(vocab := model["vocab"], dict):
        model["vocab"] = {hidden.get(piece, piece): number for piece, number in vocab.items()}
    else:
        model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in vocab]
    if model.get("unk_token") is not None:
        model["unk_token"] = hidden.get(model["unk_token"], model["unk_token"])
    return content


def _is_wordwise(content: dict[str, Any]) -> bool:
    # The first tokenizer.json files name no type for their model; a WordPiece has this prefix.
    types = ((content[part] or {}).get("type") for part, _ in _WORDWISE)
    plain = all(kind in (name, None) for kind, (_, name) in zip(types, _WORDWISE, strict=True))
    model = content["model"]
    return (
        plain and not content["added_tokens"] and bool(content["normalizer"]) and "continuing_subword_prefix" in model
    )

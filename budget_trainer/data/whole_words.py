"""What a tokenizer holds: its vocabulary, and for whole-word masking which tokens go on with the word before them, and which
words are chosen."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from budget_trainer.core.errors import InputError

# What a byte-level BPE writes for space, newline, tab and carriage return at the start of a token.
_BYTE_LEVEL_MARKS = ("\u0120", "\u010a", "\u0109", "\u010d")
_METASPACE = "\u2581"
_STARTS, _CONTINUES, _SPECIAL = 0, 1, 2  # kinds of tokens
_LAST = np.uint64(0xFFFFFFFFFFFFFFFF)


def check_not_sentencepiece(path: Path) -> None:
    """InputError where a file or folder is a tokenizer for sentencepiece alone, which is not installed."""
    found = [path] if path.suffix == ".model" else sorted(path.glob("*.model")) if path.is_dir() else []
    others = path.is_dir() and (any(path.glob("*tokenizer.json")) or any(path.glob("*vocab.txt")))
    readable = (path / "tokenizer_config.json").exists() and importlib.util.find_spec("sentencepiece")
    if found and not others and not readable:
        fix = "load it where sentencepiece is installed and save_pretrained it: tokenizer.json is needed"
        raise InputError(f"tokenizer {path}: holds a sentencepiece model alone ({found[0].name}); {fix}")


def vocabulary_size(tokenizer: Any) -> int:
    """The largest id of the tokenizer and 1: more than `len(tokenizer)` where ids are unused."""
    return max(tokenizer.get_vocab().values()) + 1


def continues_word(tokenizer: Any) -> NDArray[np.bool_]:
    """Bool [vocabulary_size(tokenizer)]: the token continues the word before it.

    WordPiece marks these tokens (##); byte-level BPE and SentencePiece mark the others (a leading space). There a word
    is what stands between spaces, punctuation included. Special and added tokens never continue a word. InputError: neither
    mark is there.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = json.loads(backend.to_str()) if backend is not None else {"model": {}}
    tokens = [token or "" for token in tokenizer.convert_ids_to_tokens(list(range(vocabulary_size(tokenizer))))]
    prefix = content["model"].get("continuing_subword_prefix")
    marks = _word_start_marks(content)
    if prefix:
        continues = np.array([token.startswith(prefix) and token != prefix for token in tokens])
    elif marks:
        continues = np.array([not token.startswith(marks) for token in tokens])
    else:
        kind = content["model"].get("type", "not a fast one")
        raise InputError(
            f"whole_word_mask: the tokenizer ({kind}) marks neither the starts nor the continuations of words; leave it out, "
            "or use a WordPiece, byte-level BPE or SentencePiece tokenizer"
        )
    special = {*tokenizer.all_special_ids, *(token["id"] for token in content.get("added_tokens", []))}
    continues[sorted(i for i in special if i < len(continues))] = False
    return continues


def word_table(continues: NDArray[Any], special_ids: list[int], vocab_size: int) -> NDArray[np.int8]:
    """Int8 [vocab_size] for `choose_words` from the bool array of `continues_word`; InputError: it has another shape."""
    continues = np.asarray(continues)
    if continues.shape != (vocab_size,):
        raise InputError(
            f"whole_words: shape {continues.shape} for a vocabulary of {vocab_size}; give one bool per token"
        )
    table = np.where(continues.astype(bool), _CONTINUES, _STARTS).astype(np.int8)
    table[special_ids] = _SPECIAL
    return table


def choose_words(
    kinds: NDArray[np.int8],
    candidate: NDArray[np.bool_],
    score: NDArray[np.uint64],
    place_mask: np.uint64,
    wanted: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Bool [N, M]: whole words, lowest score of the first token first, each that still fits into `wanted` tokens.

    A word that does not fit is passed over, as in BERT's create_pretraining_data.py; where none fits, nothing is chosen.

    Args:
        kinds: [N, M] entries of `word_table` for the tokens.
        candidate: [N, M] tokens that may be chosen; the others are in no word.
        score: [N, M] different in each row; the bits under `place_mask` are the position.
        wanted: [N] the most tokens to choose in each row.
    """
    rows, length = kinds.shape
    if not rows:
        return candidate
    # A word also begins where the token before is special, or in no word at all.
    broken = np.ones((rows, length), bool)
    broken[:, 1:] = (kinds[:, :-1] == _SPECIAL) | ~candidate[:, :-1]
    start = candidate & (broken | (kinds != _CONTINUES))
    place = np.arange(length)
    first = np.maximum.accumulate(np.where(start, place, 0), axis=1)  # of the word that each token is in
    flat = (first + np.arange(rows)[:, None] * length)[candidate]
    sizes = np.bincount(flat, minlength=rows * length).reshape(rows, length)
    order = np.sort(np.where(start, score, _LAST), axis=1)
    words = start.sum(axis=1)
    left = wanted.astype(np.int64)
    chosen = np.zeros((rows, length), bool)
    every = np.arange(rows)
    for rank in range(int(words.max())):  # over the words, all rows at once; few more than are chosen
        word = (order[:, rank] & place_mask).astype(np.int64) % length  # beyond a row's last word: any, not taken
        size = sizes[every, word]
        taken = (size <= left) & (rank < words)
        chosen[every[taken], word[taken]] = True
        left -= np.where(taken, size, 0)
        if not left.any():
            break
    return np.take_along_axis(chosen, first, axis=1) & candidate


def _word_start_marks(content: dict[str, Any]) -> tuple[str, ...]:
    """What the first token of a word begins with, from the normalizer and the pre-tokenizer; () if unknown."""
    if content["model"].get("end_of_word_suffix"):
        return ()
    for part in _parts(content.get("pre_tokenizer"), content.get("normalizer")):
        if part.get("type") == "ByteLevel":
            return _BYTE_LEVEL_MARKS
        if part.get("type") == "Metaspace":
            return (part.get("replacement", _METASPACE),)
        if part.get("type") == "Replace" and part.get("content") == _METASPACE:
            return (_METASPACE,)
    return ()


def _parts(*nodes: Any) -> Iterator[dict[str, Any]]:
    """Every component of a tokenizer.json's normalizer or pre-tokenizer, those inside of a Sequence too."""
    for node in nodes:
        if isinstance(node, dict):
            yield node
            yield from _parts(*node.get("pretokenizers", []), *node.get("normalizers", []))

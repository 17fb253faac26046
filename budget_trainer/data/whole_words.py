"""Whole-word masking: which tokens of a tokenizer go on with the word before them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from budget_trainer.core.errors import InputError

# What a byte-level BPE writes for space, newline, tab and carriage return at the start of a token.
_BYTE_LEVEL_MARKS = ("\u0120", "\u010a", "\u0109", "\u010d")
_METASPACE = "\u2581"


def continues_word(tokenizer: Any) -> NDArray[np.bool_]:
    """Return bool [len(tokenizer)]: the token continues the word before it.

    WordPiece marks these tokens (##); byte-level BPE and SentencePiece mark the others (a leading space). There a word
    is what stands between spaces, punctuation included. Special and added tokens never continue a word.

    Raises:
        InputError: neither mark is there, so that it cannot be told.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = json.loads(backend.to_str()) if backend is not None else {"model": {}}
    tokens = [token or "" for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
    prefix = content["model"].get("continuing_subword_prefix")
    marks = _word_start_marks(content)
    if prefix:
        continues = np.array([token.startswith(prefix) and token != prefix for token in tokens])
    elif marks:
        continues = np.array([not token.startswith(marks) for token in tokens])
    else:
        raise InputError(
            f"whole_word_mask: the tokenizer ({content['model'].get('type', 'not a fast one')}) marks neither the starts "
            "nor the continuations of words; leave whole_word_mask out, or use a WordPiece, byte-level BPE or "
            "SentencePiece tokenizer"
        )
    special = {*tokenizer.all_special_ids, *(token["id"] for token in content.get("added_tokens", []))}
    continues[sorted(i for i in special if i < len(continues))] = False
    return continues


def _word_start_marks(content: dict[str, Any]) -> tuple[str, ...]:
    """Return what the first token of a word begins with, from the normalizer and the pre-tokenizer; () if unknown."""
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
    """Yield every component of a tokenizer.json's normalizer or pre-tokenizer, those inside of a Sequence too."""
    for node in nodes:
        if isinstance(node, dict):
            yield node
            yield from _parts(*node.get("pretokenizers", []), *node.get("normalizers", []))

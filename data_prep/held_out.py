"""Which documents are held out for validation, and by which rule: what data folders that are merged must agree in."""

import hashlib
from typing import Any

HASHED_WORDS = 200
HELD_OUT_RULE = 2  # of `is_held_out`, raised with every change of what it answers; 1 hashed all words of a document


def validation_facts(fraction: float, text: str | None) -> dict[str, Any]:
    """What the manifest says, at `validation`, of how documents were held out: a share by `is_held_out`, or a text."""
    return {"fraction": fraction, "text": text, "rule": HELD_OUT_RULE}


def is_held_out(document: str, fraction: float) -> bool:
    """Whether the document belongs to validation: a function of its words alone, so that it stays where it is as the
    corpus grows, and copies that differ in case or spacing are never on both sides. Of a long document the first and the
    last HASHED_WORDS words decide, so that it costs little and copies that differ in between are together too."""
    words = document.split(None, HASHED_WORDS)
    if len(words) > HASHED_WORDS:
        words[-1:] = words[-1].rsplit(None, HASHED_WORDS)[-HASHED_WORDS:]
    digest = hashlib.blake2b(" ".join(words).casefold().encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2.0**64

"""The texts of a comparison, the same for all its runs: training and held-out documents, one a line; tokenizer and blocks."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.cli import run_child
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import fresh_folder, write_json_atomic

HELD_OUT = 0.05  # of the documents, where no held-out text is given
LEAST_WORDS = 16  # a shorter document gives no scored block, and may well stand in both texts
VOCABULARY = 8192  # of a tokenizer that is trained here


def prepare_texts(text: str | None, eval_text: str | None, folder: Path) -> tuple[Path, Path]:
    """`train.txt` and `held_out.txt` in `folder`: one document a line, blank lines between; made where they are not there.

    Args:
        text: what data_prep reads (None: the docstrings of the installed packages); without `eval_text` a share HELD_OUT of
            its documents, chosen by their words, is held out.
        eval_text: held-out text. InputError where a document of it stands in `text` too.
    """
    asked = {"text": text, "eval_text": eval_text}
    train, held_out, claim = folder / "train.txt", folder / "held_out.txt", folder / "texts.json"
    if claim.is_file():
        theirs = json.loads(claim.read_text())
        if any(theirs[name] != given for name, given in asked.items()):
            raise InputError(
                f"output_dir: {folder.parent} holds runs on another text ({theirs['text']}); give another folder"
            )
        return train, held_out
    fresh_folder(folder)
    if text is None:
        text = str(folder / "docstrings.txt")
        print("collecting docstrings of the installed packages", flush=True)
        run_child([sys.executable, "-m", "data_prep.docstrings", "--output_file", text], folder / "docstrings.log")
    if eval_text is None:
        count, held = _split(text, train, held_out)
        if not 0 < held < count:
            raise InputError(
                f"text: of its {count} documents {held} would be held out; give more text, or an --eval_text"
            )
    else:
        seen = _write(_documents(eval_text), held_out)
        _check_apart(text, train, seen)
    write_json_atomic(claim, asked)
    return train, held_out


def prepare_tokenizer(train: Path, folder: Path) -> str:
    """A tokenizer of VOCABULARY tokens, trained on the training text; made where it is not there."""
    if not (folder / "tokenizer.json").is_file():
        print("training a tokenizer", flush=True)
        command = [sys.executable, "-m", "data_prep.tokenizer", "--input", str(train), "--output_dir", str(folder)]
        run_child([*command, "--vocab_size", str(VOCABULARY), "--overwrite"], folder.with_suffix(".log"))
    return str(folder)


def prepare_blocks(train: Path, held_out: Path, tokenizer: str | None, folder: Path, packing: str) -> None:
    """The data folder of both texts, with a tokenizer trained beside it where none is given; made where it is not there."""
    if (folder / "manifest.json").is_file():
        return
    tokenizer = tokenizer or prepare_tokenizer(train, folder.parent / "tokenizer")
    print(f"preparing {folder}", flush=True)
    command = [sys.executable, "-m", "data_prep.blocks", "--input", str(train), "--validation_text", str(held_out)]
    command += ["--tokenizer", tokenizer, "--output_dir", str(folder), "--packing", packing]
    run_child([*command, "--num_proc", str(os.cpu_count() or 1)], folder.with_name("data_prep.log"))


def _documents(path: str) -> Iterator[str]:
    from data_prep.sources import Source

    return Source(path).documents()


def _key(document: str) -> bytes:
    """Of its words, whatever their case."""
    return hashlib.blake2b(" ".join(document.split()).casefold().encode("utf-8", "replace"), digest_size=16).digest()


def _is_long(document: str) -> bool:
    return len(document.split(None, LEAST_WORDS)) >= LEAST_WORDS


def _split(text: str, train: Path, held_out: Path) -> tuple[int, int]:
    """How many documents there are, and how many of them are held out."""
    from data_prep.corpus import is_held_out

    counts = [0, 0]
    with train.open("w", encoding="utf-8") as kept, held_out.open("w", encoding="utf-8") as held:
        for document in _documents(text):
            apart = is_held_out(document, HELD_OUT)
            (held if apart else kept).write(f"{document}\n\n")
            counts[apart] += 1
    return sum(counts), counts[1]


def _write(documents: Iterable[str], file: Path) -> dict[bytes, str]:
    """Write the documents; the keys of the long ones, each with how it begins."""
    seen = {}
    with file.open("w", encoding="utf-8") as out:
        for document in documents:
            out.write(f"{document}\n\n")
            if _is_long(document):
                seen[_key(document)] = document[:40]
    return seen


def _check_apart(text: str, train: Path, seen: dict[bytes, str]) -> None:
    """Write the training text. InputError: documents of it are among those `seen` in the held-out text."""
    both: set[bytes] = set()
    with train.open("w", encoding="utf-8") as out:
        for document in _documents(text):
            out.write(f"{document}\n\n")
            if _is_long(document) and (key := _key(document)) in seen:
                both.add(key)
    if both:
        what = f"{len(both)} of its documents stand in text too (one begins {seen[min(both)]!r})"
        raise InputError(f"eval_text: {what}; give a text that was held out, or leave it out")

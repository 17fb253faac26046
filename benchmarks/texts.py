"""The texts of a comparison, the same for all its runs: training and held-out documents, one a line; tokenizer and blocks."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.baselines.command import BLOCK
from benchmarks.cli import run_child
from budget_trainer.core.errors import InputError
from budget_trainer.core.io import fresh_folder, sha256, write_json_atomic

HELD_OUT = 0.05  # of the documents, where no held-out text is given
LEAST_WORDS = 16  # a shorter document gives no scored block, and may well stand in both texts
LEAST_TOKENS = 16  # of a block that the scorer takes
VOCABULARY = 8192  # of a tokenizer that is trained here
_NOWHERE = Path(os.devnull)


def digest(path: str | Path) -> str:
    """Of a file's content, or of the names and contents of the files in a folder: 16 hexadecimal digits."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return sha256("".join(f"{file.relative_to(path)} {sha256(file)}\n" for file in files))[:16]


def prepare_texts(text: str | None, eval_text: str | None, folder: Path) -> tuple[Path, Path]:
    """`train.txt` and `held_out.txt` in `folder`: one document a line, blank lines between; made where they are not there.

    Args:
        text: what data_prep reads (None: the docstrings of the installed packages); without `eval_text` a share HELD_OUT of
            its documents, chosen by their words, is held out.
        eval_text: held-out text. InputError where a document of it stands in `text` too (see `check_apart`).
    """
    asked = {"text": text and digest(text), "eval_text": eval_text and digest(eval_text)}
    train, held_out, claim = folder / "train.txt", folder / "held_out.txt", folder / "texts.json"
    if claim.is_file():
        if json.loads(claim.read_text()) != asked:
            raise InputError(f"output_dir: {folder.parent} holds runs on another text; give another folder")
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
        check_apart(text, eval_text, train, held_out)
    write_json_atomic(claim, asked)
    return train, held_out


def check_apart(text: str, eval_text: str, train: Path = _NOWHERE, held_out: Path = _NOWHERE) -> None:
    """Write the documents of both texts. InputError: a document of LEAST_WORDS words or more stands in both.

    Of a text in which no blank line divides documents, a line may be one: then each of its lines is compared.
    """
    seen = dict(_write(eval_text, held_out))
    if both := {key for key, _ in _write(text, train) if key in seen}:
        what = f"{len(both)} of its documents stand in text too (one begins {seen[min(both)]!r})"
        raise InputError(f"eval_text: {what}; give a text that was held out, or leave it out")


def check_enough(train: Path, held_out: Path, tokenizer: str, blocks: int) -> None:
    """InputError: the training text has fewer than `blocks` blocks of tokens, or the held-out text none that is scored."""
    from transformers import AutoTokenizer

    encode = AutoTokenizer.from_pretrained(tokenizer)

    def counts(file: Path) -> Iterator[int]:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                yield len(encode(line.strip(), add_special_tokens=False, verbose=False)["input_ids"])

    if not any(count >= LEAST_TOKENS for count in counts(held_out)):
        what = f"no document of {held_out} has {LEAST_TOKENS} tokens, the least of a block that is scored"
        raise InputError(f"eval_text: {what}; give more text")
    if not any(total >= blocks * BLOCK for total in itertools.accumulate(counts(train))):
        raise InputError(f"text: {train} has fewer tokens than {blocks} blocks of {BLOCK}, a batch; give more text")


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


def _keyed(document: str) -> Iterator[tuple[bytes, str]]:
    """Of a long document its key, from its words whatever their case, and how it begins."""
    if len(document.split(None, LEAST_WORDS)) >= LEAST_WORDS:
        words = " ".join(document.split()).casefold().encode("utf-8", "replace")
        yield hashlib.blake2b(words, digest_size=16).digest(), document[:40]


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


def _write(path: str, file: Path) -> Iterator[tuple[bytes, str]]:
    """Write the documents of a text; `_keyed` of each, and of each line where no blank line divides them."""
    from data_prep.files import files_below
    from data_prep.sources import Source

    source, count = Source(path), 0
    with file.open("w", encoding="utf-8") as out:
        for document in source.documents():
            out.write(f"{document}\n\n")
            count += 1
            yield from _keyed(document)
    divided = count - source.account.get("documents_cut", 0) > len(files_below(Path(path)))
    if source.kind == "text" and not divided:
        for line in Source(path, "text", documents_end="lines").documents():
            yield from _keyed(line)

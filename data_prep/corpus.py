"""Documents -> token ids: Arrow files of text groups, and a parallel `datasets` map over the groups of each.

A group is some documents, about 256 kB of text; a part is some groups, about 128 MB. Their borders depend on the text
alone, so whatever is made from the groups in order is the same for any number of processes. Memory is bounded by the
group, and disk space (and the mapped files that count as memory) by the part, whatever the size of the corpus.

Which documents are held out for validation is a function of their words.
"""

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from data_prep.encoding import I64, Encoder
from data_prep.losses import Meter
from data_prep.sentences import sentence_ends, split_sentences

GROUP_CHARACTERS = 256 * 1024
PART_BYTES = 128 * 1024**2
_TEXT = pa.schema([("documents", pa.list_(pa.string())), ("first", pa.int64())])

# Which of a group's documents are kept, their ids where it made them, and what was removed: of the documents, the number of
# the first in its part, and the encoder.
Select = Callable[[list[str], int, Encoder], tuple[list[str], list[I64] | None, dict[str, Any]]]


@dataclass
class TokenGroup:
    """ids [sum(lengths)] and lengths [training documents] in tokens, without special ones; documents without a token are
    left out. held_out: the texts of validation. sentences: the lengths of the documents' sentences, empty where they were not
    asked for. removed: what a `Select` says that it took out. losses: what the tokenizer lost of the training documents, as
    `Meter.count` says."""

    ids: np.ndarray
    lengths: np.ndarray
    train_bytes: int
    held_out: list[str]
    sentences: np.ndarray
    removed: dict[str, Any]
    losses: dict[str, Any] = field(default_factory=dict)


def token_groups(
    documents: Iterator[str],
    folder: Path,
    ends_from: Callable[[Iterable[list[str]]], int] | None = None,
    **options: Any,
) -> Iterator[TokenGroup]:
    """The groups of the documents, read and tokenised part by part in files in `folder`; `options` as `tokenise_part`, with the
    answer of `ends_from` to the documents of the last part where nothing was held out before."""
    held_out = False
    for number in itertools.count():
        file = folder / f"part-{number:05d}.arrow"
        count, last = write_part(documents, file)
        ahead = list(itertools.islice(documents, 1))
        documents, last = itertools.chain(ahead, documents), not ahead
        if ends_from is not None and last and not held_out:
            options["ends_from"] = ends_from(read_part(file))
        if count:
            for group in read_tokens(tokenise_part(file, **options)):
                held_out = held_out or bool(group.held_out)
                yield group
        for used in folder.glob(f"{file.stem}.*"):
            used.unlink()
        if last:
            return


def write_part(documents: Iterable[str], file: Path, part_bytes: float | None = None) -> tuple[int, bool]:
    """Writes documents to an Arrow stream file, one group per record batch, until it holds `part_bytes` (PART_BYTES) and a
    group ends, or there are no more; returns how many, and whether there are no more."""
    part_bytes = PART_BYTES if part_bytes is None else part_bytes
    count = size = 0
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, _TEXT) as writer:
        for group in _groups(documents, min(GROUP_CHARACTERS, part_bytes)):
            columns = [pa.array([group], pa.list_(pa.string())), pa.array([count], pa.int64())]
            batch = pa.record_batch(columns, schema=_TEXT)
            writer.write_batch(batch)
            count += len(group)
            size += batch.nbytes
            if size >= part_bytes:
                return count, False
    return count, True


def read_part(file: Path) -> Iterator[list[str]]:
    """The groups of documents in a file of `write_part`."""
    with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as reader:
        for batch in reader:
            yield batch["documents"][0].as_py()


def read_tokens(files: Iterable[Path]) -> Iterator[TokenGroup]:
    """The groups in files of `tokenise_part`, in order."""
    for file in files:
        for table in datasets.Dataset.from_file(str(file)).with_format("arrow").iter(batch_size=1):
            arrays = {name: table[name].chunk(0).flatten().to_numpy() for name in ("ids", "lengths", "sentences")}
            accounts = {name: json.loads(table[name][0].as_py()) for name in ("removed", "losses")}
            others = {name: table[name][0].as_py() for name in ("train_bytes", "held_out")}
            yield TokenGroup(**arrays, **others, **accounts)


def tokenise_part(file: Path, target: Path | None = None, *, dtype: str, num_proc: int, **how: Any) -> list[Path]:
    """The files, in order, into which the groups of one part were tokenised; they lie beside `target` (the part), with its
    stem. `how`: tokenizer_file; fraction, the share of documents held out, chosen by their hash; ends_from, where not 0: the
    share `fraction` is of the ends of documents of so many characters; sentences, to tokenise sentence by sentence and say
    where they end; a `Select` as select."""
    text = datasets.Dataset.from_file(str(file))
    processes = min(num_proc, len(text))  # more are no use, and the library would say so
    lists = {"ids": dtype, "lengths": "int64", "held_out": "string", "sentences": "int64"}
    features = datasets.Features(
        {name: datasets.LargeList(datasets.Value(kind)) for name, kind in lists.items()}
        | {
            "train_bytes": datasets.Value("int64"),
            "removed": datasets.Value("string"),
            "losses": datasets.Value("string"),
        }
    )
    tokens = text.with_format("arrow").map(
        _tokenise_groups,
        batched=True,
        batch_size=4,
        writer_batch_size=32,
        num_proc=processes if processes > 1 else None,
        remove_columns=text.column_names,
        features=features,
        fn_kwargs={**how, "schema": features.arrow_schema},
        cache_file_name=str((target or file).with_suffix(".tokens.arrow")),
        new_fingerprint=file.stem,  # nothing is looked up by it: the file is used once
        desc="tokenising",
    )
    return [Path(entry["filename"]) for entry in tokens.cache_files]


_encoder = functools.cache(Encoder)  # one per process: loading costs as much as tokenising a megabyte


@functools.cache
def _meter(tokenizer_file: str) -> Meter:
    return Meter(_encoder(tokenizer_file))


def _groups(documents: Iterable[str], characters: float) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document)
        if size >= characters:
            yield group
            group, size = [], 0
    if group:
        yield group


def _tokenise_groups(
    table: pa.Table,
    tokenizer_file: str,
    fraction: float,
    schema: pa.Schema,
    ends_from: int = 0,
    sentences: bool = False,
    select: Select | None = None,
) -> pa.Table:
    # One thread per process: the processes are the parallelism, and Rust threads do not survive a fork.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encoder = _encoder(tokenizer_file)
    dtype = schema.field("ids").type.value_type.to_pandas_dtype()
    ids: list[np.ndarray] = []
    columns: dict[str, list[Any]] = {name: [] for name in schema.names if name != "ids"}
    for documents, first in zip(table["documents"].to_pylist(), table["first"].to_pylist(), strict=True):
        documents, known, removed = (documents, None, {}) if select is None else select(documents, first, encoder)
        columns["removed"].append(json.dumps(removed))
        if ends_from:
            parts = [_without_end(text, fraction) if len(text) >= ends_from else (text, "") for text in documents]
            train, held_out, known = [text for text, _ in parts], [end for _, end in parts if end], None
        else:
            kept = [not fraction or not is_held_out(document, fraction) for document in documents]
            train = list(itertools.compress(documents, kept))
            held_out = list(itertools.compress(documents, [not here for here in kept]))
        texts = [split_sentences(document) if sentences else [document] for document in train]
        if known is None or sentences:
            encoded = encoder.encode(list(itertools.chain.from_iterable(texts)))
        else:
            encoded = list(itertools.compress(known, kept))
        ids.append(np.concatenate([np.zeros(0, dtype), *encoded], dtype=dtype, casting="unsafe"))
        sizes = iter([len(text) for text in encoded])
        lengths = [sum(itertools.islice(sizes, len(document))) for document in texts]
        columns["lengths"].append([length for length in lengths if length])
        columns["sentences"].append([len(text) for text in encoded if len(text)] if sentences else [])
        raw = [document.encode() for document in train]
        columns["train_bytes"].append(sum(map(len, raw)))
        counts = _meter(tokenizer_file).count(raw, ids[-1])
        columns["losses"].append(json.dumps({**counts, "empty_documents": lengths.count(0)}))
        columns["held_out"].append(held_out)
    borders = np.cumsum([0] + [len(group) for group in ids])
    arrays = {name: pa.array(values, schema.field(name).type) for name, values in columns.items()}
    arrays["ids"] = pa.LargeListArray.from_arrays(borders, np.concatenate(ids))  # without a Python object per token
    return pa.table(arrays, schema=schema)


HASHED_WORDS = 200
HELD_OUT_RULE = 2  # of `is_held_out`, raised with every change of what it answers; 1 hashed all words of a document


def is_held_out(document: str, fraction: float) -> bool:
    """Whether the document belongs to validation: a function of its first and last HASHED_WORDS words, so that it stays where
    it is as the corpus grows, and copies that differ in case, in spacing or in between are never on both sides."""
    words = document.split(None, HASHED_WORDS)
    if len(words) > HASHED_WORDS:
        words[-1:] = words[-1].rsplit(None, HASHED_WORDS)[-HASHED_WORDS:]
    digest = hashlib.blake2b(" ".join(words).casefold().encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2.0**64


END_CHARACTERS = (
    600  # that a document of a small corpus gives to validation at least; one of four times as many gives it
)


def _without_end(document: str, fraction: float) -> tuple[str, str]:
    """The document, and a share `fraction` of it, or END_CHARACTERS, or its half, that is taken from its end: from the end of
    a sentence on where there is one near, or from a space."""
    size = min(max(END_CHARACTERS, int(fraction * len(document))), len(document) // 2)
    cut = len(document) - size
    near = max(0, cut - min(1000, size // 2))
    ends = [end for end in sentence_ends(document, near, cut + 100) if end <= cut]
    cut = ends[-1] if ends else max(document.rfind(" ", near, cut), 0) or cut
    return document[:cut].rstrip(), document[cut:].lstrip()

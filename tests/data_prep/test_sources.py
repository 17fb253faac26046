"""Readers: forms, kinds found by looking, and what they refuse."""

import bz2
import csv
import errno
import functools
import gzip
import io
import json
import lzma
import os
import random
import re
import socket
import tarfile
import tracemalloc
import zipfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from budget_trainer.core.errors import InputError
from data_prep.files import files_below, lines, members, unread_line
from data_prep.sources import MAX_DOCUMENT_CHARACTERS, Source
from tests.conftest import SHARED_DATA, read_documents

LONG = (
    "A paragraph of some length, longer than a hundred characters, so that it is no line of a wrapped book. It ends."
)
WIKI = f"Title one\n  {LONG} \nSecond.\n\n \nTitle two\n{LONG} Another.\n"
WIKI_DOCUMENTS = [" ".join(line.strip() for line in part.split("\n")) for part in WIKI.strip().split("\n\n \n")]


def _read(path, kind="auto", **options):
    return list(read_documents(path, kind, **options))


def _zstd(file, mode):
    return pa.CompressedOutputStream(str(file), "zstd")


OPENERS = {"": open, ".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open, ".zst": _zstd}


def _tar(file, *added):
    """An archive, packed as its name says, of files and folders."""
    with tarfile.open(file, f"w:{file.suffix[1:].removeprefix('tar')}") as archive:
        for path in added:
            archive.add(path, arcname=path.name)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("suffix", OPENERS)
def test_text_files_plain_and_compressed(tmp_path, suffix, end):
    file = tmp_path / f"wiki.txt{suffix}"
    with OPENERS[suffix](file, "wb") as out:
        out.write(b"\xef\xbb\xbf" + WIKI.replace("\n", end).encode())
    assert Source(str(file)).kind == "text"
    assert _read(file) == WIKI_DOCUMENTS
    (tmp_path / "z.txt").write_bytes(b"\xff")
    stream = read_documents(tmp_path, "text")  # the folder; the first document comes before the next file is opened
    assert next(stream) == WIKI_DOCUMENTS[0]
    with pytest.raises(InputError, match=r"z\.txt"):
        list(stream)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "folder", "books.tar", "books.tar.gz"])
def test_progress_counts_what_is_read_from_the_disk(tmp_path, name, capsys):
    size = 2_000_000
    noise = "".join(random.Random(0).choices("abcdefgh .\n", k=size))  # hardly compressible
    place = tmp_path / name
    if name == "folder":
        place.mkdir()
        for part in range(4):
            (place / f"{part}.txt").write_text(noise[part::4])
    elif ".tar" in name:
        (tmp_path / "one.txt").write_text(noise)
        _tar(place, tmp_path / "one.txt")
    else:
        with OPENERS[place.suffix.removesuffix(".txt")](place, "wb") as out:
            out.write(noise.encode())
    told = []
    texts = (line for name, stream in members(place, told.append) for line in lines(name, stream))
    next(texts)
    whole = sum(file.stat().st_size for file in files_below(place))
    assert 0 < sum(told) < whole / 2
    assert sum(1 for _ in texts) > 1000
    assert sum(told) == whole
    _read(place)
    assert f"{name}: 100%" in capsys.readouterr().err


def test_books_one_document_per_file_from_folder_and_tar(tmp_path):
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "b.txt").write_bytes(b"\xef\xbb\xbfCHAPTER I\r\n\r\nIt was a dark\r\nand stormy night.\r\n")
    (folder / "a.txt").write_text("One.\n\nTwo.\n")
    (folder / "index.tsv").write_text("not a book")
    _tar(tmp_path / "books.tar.xz", folder)
    books = ["One. Two.", "CHAPTER I It was a dark and stormy night."]
    for place in (folder, tmp_path / "books.tar.xz"):
        assert Source(str(place)).kind == "books" and _read(place) == books


def test_wikiextractor_both_forms(tmp_path):
    folder = tmp_path / "AA"
    folder.mkdir()
    (folder / "wiki_00").write_text('<doc id="1" title="A">\nA\n\nText of A.\n</doc>\n<doc id="2">\n\n</doc>\n')
    (folder / "wiki_02").write_text(
        '<doc id="5">\nA &lt; B &amp;amp; &quot;C&quot;&#39;s\n</doc>\n{"text": "caf&eacute;"}\n'
    )
    articles = [{"id": "3", "text": "B\n\nText\u2028of B."}, {"id": "4", "text": ""}, {"text": "half \ud800 pair"}]
    (folder / "wiki_01").write_text("\n".join(map(json.dumps, articles)))
    assert Source(str(tmp_path)).kind == "wikiextractor"
    assert _read(tmp_path) == ["A Text of A.", "B Text\u2028of B.", "half ? pair", 'A < B &amp; "C"\'s', "café"]


@pytest.mark.parametrize("kind", ["text", "mediawiki"])
def test_the_first_documents(tmp_path, kind):
    page = "<page><title>{0}</title><ns>0</ns><revision><text>{0}</text></revision></page>"
    dump = f"<mediawiki>{''.join(map(page.format, 'abc'))}</mediawiki>"
    (tmp_path / "a").write_text("\n\n".join("abc") if kind == "text" else dump)
    assert len(_read(tmp_path / "a", kind, max_documents=2, num_proc=2)) == 2
    assert len(_read(tmp_path / "a", kind, max_documents=9)) == 3


@pytest.mark.parametrize(
    "kind, content, message",
    [
        ("wikiextractor", b'<doc id="1">\ntext\n', "not closed"),
        ("wikiextractor", b'<doc id="1">\ntext\n</doc>\nmore\n', "line 4 stands outside"),
        ("wikiextractor", b'{"id": 1}\n', "line 1 is not a JSON object"),
        ("text", b" \n\n", "no text found when read as text"),
        ("text", b"plain\ncaf\xe9 au lait\n", "a.txt: byte 0xe9 at offset 9 is not UTF-8"),
        ("auto", None, "holds no files"),
        ("hdf5", None, "kind 'hdf5' is unknown"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, kind, content, message):
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        _read(tmp_path, kind)
    if content and b"\xe9" in content:
        assert _read(tmp_path, kind, errors="replace") == ["plain caf\ufffd au lait"]
    for path in (tmp_path / "none.txt", tmp_path / "none"):
        with pytest.raises(InputError, match="no such file or folder"):
            _read(path)
    assert Source("wikimedia/wikipedia").kind == "dataset"


@pytest.mark.parametrize("name", ["a.xz", "a.gz", "a.bz2", "a.zst", "a.tar.xz"])
def test_a_cut_off_archive_is_refused(tmp_path, name):
    file, whole = tmp_path / "a.xml", tmp_path / name
    file.write_text(f"<mediawiki>\n{random.Random(0).randbytes(50_000).hex()}\n</mediawiki>")
    if ".tar" in name:
        _tar(whole, file)
    else:
        with OPENERS[whole.suffix](whole, "wb") as out:
            out.write(file.read_bytes())
    content = whole.read_bytes()
    for damaged in (content[: len(content) // 2], b"not compressed at all"):
        whole.write_bytes(damaged)
        for kind in ("text", "mediawiki"):
            with pytest.raises(InputError, match=f"{whole}.*: damaged"):
                _read(whole, kind)


def test_a_document_without_end_is_cut(tmp_path):
    lines = ["x" * 1000] * (MAX_DOCUMENT_CHARACTERS // 1000 * 5 // 2)
    (tmp_path / "a.txt").write_text("\n".join(lines))
    sizes = [len(document) for document in _read(tmp_path / "a.txt", "text")]
    assert len(sizes) == 3 and sum(sizes) == 1001 * len(lines) - 3


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no shared data")
def test_real_corpora():
    names = ("wiki2018_00", "books_hardwrapped", "books_08", "wikiextractor_sample")
    wiki, hard, *others = (Source(str(next(SHARED_DATA.glob(f"{name}.*")))) for name in names)
    assert [source.kind for source in (wiki, hard, *others)] == ["text", "books", "books", "wikiextractor"]
    for source, documents in zip(others, (3, 154), strict=True):
        texts = list(source.documents())
        assert len(texts) == documents
        assert not any("\n" in text or "\r" in text or text.startswith("\ufeff") for text in texts)
    with tarfile.open(SHARED_DATA / "books_hardwrapped.tar.xz") as archive:
        novels = [member for member in archive.getmembers() if member.name.endswith(".txt")]
        raw = [archive.extractfile(member).read().decode("utf-8-sig").split() for member in novels]
    assert len(raw) == 12 and [document.split() for document in hard.documents()] == raw, "no word is lost"


@pytest.mark.parametrize("words", ["caf\u00e9 au lait ", "\u00e9\u4e2d\U0001f600"])
def test_a_line_of_any_length_comes_in_pieces(tmp_path, monkeypatch, words):
    """Cut at spaces nothing is lost; without one between two characters."""
    monkeypatch.setattr("data_prep.files.LINE_BYTES", 64)
    text = words * 50
    for opener, suffix in ((open, ""), (bz2.open, ".bz2")):
        with opener(tmp_path / f"long.txt{suffix}", "wb") as out:
            out.write(f"{text}\n\nNext.\n".encode())
        documents = _read(tmp_path / f"long.txt{suffix}", "text")
        assert documents[-1] == "Next." and len(documents) == 2
        assert (documents[0] if " " in text else documents[0].replace(" ", "")) == text.strip()


def test_200_megabytes_in_one_line_take_little_memory(tmp_path):
    with (tmp_path / "line.txt").open("wb") as out:
        for _ in range(200):
            out.write(b"some words of a line without an end " * 27_777)
    tracemalloc.start()
    size = sum(len(document) + 1 for document in read_documents(tmp_path / "line.txt", "text"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == (tmp_path / "line.txt").stat().st_size and peak < 200 * 2**20


HEADER = """The Project Gutenberg EBook of A Tale, by A. Nobody

This eBook is for the use of anyone anywhere at no cost.
"""
SMALL_PRINT = """**The Project Gutenberg Etext of A Tale**

***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***
Why is this "Small Print!" statement here?
"""
BOOK = """A TALE

CHAPTER I

It was a dark and stormy night; the rain fell in
torrents, except at occasional intervals.

* * *

"The END of it," she said, "is where we began."
"""
WANTED = [line for line in BOOK.split("\n") if line.strip()]
LICENCE = "\nUpdated editions will replace the previous one.\n\nSection 1. General Terms of Use\n"
MARK = "PROJECT GUTENBERG EBOOK A TALE"


@pytest.mark.parametrize(
    "text",
    [
        BOOK,
        f"{HEADER}\n*** START OF THE {MARK} ***\n{BOOK}\n*** END OF THE {MARK} ***\n{LICENCE}",
        f"{HEADER}\n***START OF THE {MARK}***\n\n\nE-text prepared by A. Hand\nand others\n\n\n{BOOK}\n\n"
        f"***END OF THE {MARK}***\n{LICENCE}",
        f"{HEADER}\n*** START OF THIS {MARK} ***\n\nProduced by A. Hand\n\n{BOOK}\n\n\n"
        f"End of the Project Gutenberg EBook of A Tale, by A. Nobody\n\n*** END OF THIS PROJECT GUTENBERG EBOOK ***\n{LICENCE}",
        f"{SMALL_PRINT}\n*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n\n{BOOK}\n"
        "End of Project Gutenberg's A Tale, by A. Nobody\n",
        f"{SMALL_PRINT}\n*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.02.11.02*END*\n\n{BOOK}",
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_book_stays_and_nothing_else(tmp_path, text, end):
    (tmp_path / "tale.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", end).encode())
    assert _read(tmp_path, "books") == [" ".join(WANTED)]
    lines = ["A line."] * 2000 + ["*** START OF THE PROJECT GUTENBERG EBOOK ***", "Another."]
    (tmp_path / "tale.txt").write_text("\n".join(lines))  # a mark so far behind is the book's own
    assert _read(tmp_path, "books") == [" ".join(lines)]


# What `datatrove` writes beside the text of a document differs from file to file, in names and in types.
METADATA = [{"url": "http://a", "score": 1}, {"file": "x", "score": "high", "deep": {"a": [1]}}, {}]


def rows_of_rank(rank):
    texts = {f"{rank}/{number}": f"Document {number} of rank {rank}.\n\nMore." for number in range(4)}
    return [{"text": text, "id": name, "metadata": METADATA[rank]} for name, text in texts.items()]


def write_jsonl(file, rows):
    with OPENERS[file.suffix.removesuffix(".jsonl")](file, "wb") as out:
        out.write("".join(json.dumps(row) + "\n" for row in rows).encode())


EXPECTED = [f"Document {number} of rank {rank}. More." for rank in range(3) for number in range(4)]


@pytest.fixture
def configured(tmp_path):
    """A dataset with two configurations of two splits, texts in the column `body`, as a README of the Hub says it."""
    configs = []
    for language in ("en", "de"):
        configs.append({"config_name": language, "data_files": []})
        for split in ("train", "test"):
            configs[-1]["data_files"].append({"split": split, "path": f"{language}-{split}-*.parquet"})
            for part in range(2):
                texts = [f"{language} {split} {part}" + " word" * n for n in range(3)]
                table = pa.table({"body": texts, "length": [len(text) for text in texts]})
                pq.write_table(table, tmp_path / f"{language}-{split}-{part}.parquet")
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n# A dataset\n")
    return tmp_path


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_the_output_of_datatrove(form, tmp_path):
    """A file per rank, whose metadata do not fit together."""
    for rank in range(3):
        file = tmp_path / f"{rank:05d}.{form}"
        if form == "parquet":
            rows = [{**row, "metadata": row["metadata"] or None} for row in rows_of_rank(rank)]
            pq.write_table(pa.Table.from_pylist(rows), file)
        else:
            write_jsonl(file, rows_of_rank(rank))
    source = Source(str(tmp_path))
    assert source.kind == ("dataset" if form == "parquet" else "jsonl") and list(source.documents()) == EXPECTED
    ids = [f"{rank}/{number}" for rank in range(3) for number in range(4)]
    assert _read(tmp_path, text_column="id", max_documents=7) == ids[:7]
    if form != "parquet":
        (tmp_path / "stats.json").write_text('{"documents": 12}')
        assert _read(tmp_path, "jsonl") == EXPECTED


def test_damaged_json_lines(tmp_path):
    write_jsonl(tmp_path / "00000.jsonl.gz", rows_of_rank(0))
    (tmp_path / "00001.jsonl").write_text('\n{"text": "a"}\n{"text": 1}\n')

    def refused(message, **options):
        with pytest.raises(InputError, match=message):
            _read(tmp_path, **options)

    refused('00001.jsonl: line 3 is not a JSON object with "text"; check the file or text_col')
    refused('00000.jsonl.gz: line 1 is not a JSON object with "body"', text_column="body")
    whole = (tmp_path / "00000.jsonl.gz").read_bytes()
    (tmp_path / "00000.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    refused("00000.jsonl.gz: damaged or cut off")


def test_other_forms_of_the_library(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"body": "One.\nTwo.\n\nThree."}, {"body": None}, {"body": "Four."}])
    assert _read(tmp_path, text_column="body") == ["One. Two. Three.", "Four."]
    datasets.Dataset.from_list([{"text": "One."}, {"text": "Two."}]).save_to_disk(tmp_path / "saved")
    assert _read(tmp_path / "saved", "dataset") == ["One.", "Two."]
    (tmp_path / "zstd").mkdir()
    write_jsonl(tmp_path / "zstd" / "train.jsonl.zst", rows_of_rank(0))  # as of the Hub
    assert Source(str(tmp_path / "zstd")).kind == "dataset"
    assert _read(tmp_path / "zstd") == EXPECTED[:4]


def test_configuration_split_and_column(configured, tmp_path_factory):
    where = {"dataset_config": "de", "dataset_split": "test", "text_column": "body"}
    where["cache_dir"] = tmp_path_factory.mktemp("cache")
    expected = [f"de test {part}" + " word" * n for part in range(2) for n in range(3)]
    documents, account = _source(configured, **where)
    assert documents == expected and account["files_not_read"]["by"] == {"not of the split": 7}
    assert _read(configured, **where, max_documents=4) == expected[:4]
    for change, message in (
        ({"dataset_config": None}, r"config None, split test.*available configs: \['en', 'de'\]"),
        ({"dataset_config": "fr"}, r"config fr.*'fr' not found.*dataset_config"),
        ({"dataset_split": "dev"}, r"Bad split: dev.*\['train', 'test'\].*dataset_split"),
        ({"text_column": "text"}, r"text_column 'text' is not in .*; it has \['body', 'length'\]"),
        ({"text_column": "length"}, r"text_column 'length' of .* holds int, no text"),
    ):
        with pytest.raises(InputError, match=message) as error:
            _read(configured, **(where | change))
        assert "\n" not in str(error.value)


def test_it_is_streamed(tmp_path):
    """What is behind the wanted documents is never read."""
    write_jsonl(tmp_path / "a.jsonl", rows_of_rank(0))
    (tmp_path / "b.jsonl").write_bytes(b'{"text": \xff')
    assert _read(tmp_path, max_documents=4) == EXPECTED[:4]
    with pytest.raises(InputError, match="b.jsonl: byte 0xff at offset 9 is not UTF-8"):
        _read(tmp_path)


TEXTS = [f'Document {number}, "so called".\n\nIts {number * 7 % 11} lines; a, b.' for number in range(30)]
AS_READ = [" ".join(text.split()) for text in TEXTS]
ROWS = [{"id": number, "text": text, "inner": {"body": text}} for number, text in enumerate(TEXTS)]


def _csv(delimiter):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows([["id", "text"], *([row["id"], row["text"]] for row in ROWS)])
    return out.getvalue().encode()


def _arrow(write, *options):
    out = io.BytesIO()
    write(pa.Table.from_pylist(ROWS), out, *options)
    return out.getvalue()


def _ipc(new):
    def write(table, out):
        with new(out, table.schema) as writer:
            writer.write_table(table, 7)

    return write


JSON_LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
TABLES = {
    **dict.fromkeys(("x.jsonl", "x.ndjson", "x.jl"), JSON_LINES),
    "x.json": json.dumps(ROWS).encode(),
    "indented.json": json.dumps({"version": 1, "data": ROWS}, indent=1).encode(),
    "columns.json": json.dumps({"text": TEXTS, "id": [1] * 30}).encode(),
    "x.csv": _csv(","),
    "x.tsv": _csv("\t"),
    "x.parquet": _arrow(pq.write_table),
    "x.arrow": _arrow(_ipc(pa.ipc.new_file)),
    "stream.arrow": _arrow(_ipc(pa.ipc.new_stream)),
}


def _in_tar(name, content):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def _in_zip(name, content):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return out.getvalue()


def _by_arrow(codec):
    def packed(name, content):
        out = pa.BufferOutputStream()
        with pa.CompressedOutputStream(out, codec) as stream:
            stream.write(content)
        return out.getvalue().to_pybytes()

    return packed


# How a file's content is packed, and what becomes of its name.
PACKED = {
    "{}": lambda name, content: content,
    "{}.GZ": lambda name, content: gzip.compress(content[:99]) + gzip.compress(content[99:]),
    "{}.xz": lambda name, content: lzma.compress(content),
    "{}.zst": _by_arrow("zstd"),
    "{}.lz4": _by_arrow("lz4"),
    "{}.zip": _in_zip,
    "{}.tar": lambda name, content: _in_tar(name, content),
    "tar.TBZ2": lambda name, content: bz2.compress(_in_tar(f"inner/{name}", content)),
    "tar.tar.zst": lambda name, content: _by_arrow("zstd")(name, _in_tar("a.tar", _in_tar(name, content))),
    "zip.tar.gz": lambda name, content: gzip.compress(_in_tar("a.zip", _in_zip(name, content))),
    "renamed.txt": lambda name, content: gzip.compress(_in_tar(name, content)),
}


@pytest.fixture
def offline(monkeypatch):
    def refused(*args, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", refused)


@pytest.mark.parametrize("form", TABLES)
def test_a_file_is_what_it_holds(tmp_path, form, offline):
    for name, pack in PACKED.items():
        file = tmp_path / name.format(form)
        file.write_bytes(pack(form, TABLES[form]))
        assert _read(file) == AS_READ, file.name
        assert Source(str(file)).kind in ("jsonl", "dataset")
    for name in ("renamed", "renamed.TXT") if form[-3:] not in ("csv", "tsv") else ():
        (tmp_path / name).write_bytes(TABLES[form])
        assert _read(tmp_path / name) == AS_READ
    if form.startswith("x.") and form[-3:] not in ("csv", "tsv"):
        assert _read(tmp_path / form, text_column="inner.body") == AS_READ
    with pytest.raises(InputError, match="body") as error:
        _read(tmp_path / form, text_column="body")
    assert form == "columns.json" or "'id'" in str(error.value), "the columns that are there are named"


def test_archives_of_texts(tmp_path):
    """Whatever their names; joined ones are read to the end; what is no text in them is counted, a document not opened."""
    text = WIKI.encode()
    old = bytearray(_in_tar("a.txt", text))  # of before POSIX: without its mark
    old[257:265], old[148:156] = bytes(8), b" " * 8
    old[148:156] = b"%06o\0 " % sum(old[:512])
    for name, content in {
        "joined.tar": _in_tar("a.txt", text) + _in_tar("a.txt", text),
        "joined.data": gzip.compress(_in_tar("a.txt", text)) + gzip.compress(_in_tar("b", text)),
        "old": bytes(old) + _in_tar("._a.txt", b"\0\1") + _in_tar("a.txt", text),
        "a.txt.BZ2": bz2.compress(text + b"\n") + bz2.compress(text),
        "packed.twice": gzip.compress(lzma.compress(text + b"\n" + text)),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert _read(tmp_path / name, "text") == WIKI_DOCUMENTS * 2, name
    with zipfile.ZipFile(tmp_path / "mixed.zip", "w") as archive:
        archive.writestr("a.txt", text)
        archive.writestr("b.docx", _in_zip("[Content_Types].xml", b"<x/>"))
        archive.writestr("c.png", b"\x89PNG\r\n")
        archive.writestr("__MACOSX/._a.txt", b"\0\5\x16\7")
    documents, account = _source(tmp_path / "mixed.zip")
    assert documents == WIKI_DOCUMENTS
    assert unread_line(account["files_not_read"]) == "2 files not read: b.docx (document), c.png (png)"
    packed = bytearray(_in_zip("a.txt", text))
    packed[8] = packed[packed.find(b"PK\1\2") + 10] = 9  # deflate64, of large ones made by Windows
    (tmp_path / "windows.zip").write_bytes(packed)
    damaged = bz2.compress(text) + b"\0" + bz2.compress(text)[1:]
    (tmp_path / "multistream.bz2").write_bytes(damaged)
    (tmp_path / "deep.tar").write_bytes(functools.reduce(lambda inner, _: _in_tar("x", inner), range(10), text))
    (tmp_path / "error.gz").write_bytes(b"<html>404 Not Found</html>")
    for name, message in {
        "deep.tar": "packed more than 8 times",
        "error.gz": "does not begin as a .gz",
        "windows.zip": r"1 file not read: a.txt \(a compression that Python does not know\)",
        "multistream.bz2": "damaged or cut off .*bz2",
    }.items():
        with pytest.raises(InputError, match=message):
            _read(tmp_path / name, "text")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\x89PNG\r\n\x1a\n", "png"),
        (b"%PDF-1.7\n\xe4", "pdf"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git_lfs_pointer"),
        (bytes(range(256)) * 40, "binary"),
        (_in_zip("[Content_Types].xml", b"<x/>"), r"a.txt \(document\)"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    for kind in ("auto", "text", "jsonl", "dataset"):
        with pytest.raises(InputError, match=message) as error:
            _read(tmp_path / "a.txt", kind)
        assert "replace" not in str(error.value), "no advice to train on it"


def _write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def _source(path, kind="auto", **options):
    source = Source(str(path), kind, **options)
    return list(source.documents()), source.account


def test_what_lies_beside_is_counted_and_named(tmp_path):
    """In a folder, in a tar and below links; a folder that holds nothing else is read."""
    png = b"\x89PNG\r\n\x1a\n"
    beside = {
        "README.md": "# Texts",
        "metadata.csv": "id,text\n1,a\n",
        "x.png": png,
        "LICENSE": "Free.",
        "s.py": "a = 1",
    }
    _write(tmp_path / "c", {"a.txt": WIKI, "b": WIKI, "in/c.text": WIKI, **beside, ".git/x": png})
    documents, account = _source(tmp_path / "c")
    by = {"about the files": 1, "markdown": 1, "table": 1, "program": 1, "png": 1}
    assert documents == WIKI_DOCUMENTS * 3 and account["files_not_read"]["by"] == by
    named = "LICENSE (about the files), README.md (markdown), metadata.csv (table), s.py (program), x.png (png)"
    assert unread_line(account["files_not_read"]) == f"5 files not read: {named}"
    _tar(tmp_path / "c.tar", tmp_path / "c")
    documents, account = _source(tmp_path / "c.tar", "text")
    assert documents == WIKI_DOCUMENTS * 3 and account["files_not_read"]["by"] == by
    (tmp_path / "c" / "broken").symlink_to("nothing")
    (tmp_path / "links").mkdir()
    for name, target in {"loop": ".", "0": "../c/in", "c": "../c", "again": "../c"}.items():
        (tmp_path / "links" / name).symlink_to(target)
    (tmp_path / "c" / "0").symlink_to("a.txt")
    os.link(tmp_path / "c" / "b", tmp_path / "c" / "d")
    documents, account = _source(tmp_path / "links")
    again = {"broken link": 1, "another name of a file that is read": 2}
    assert documents == WIKI_DOCUMENTS * 3 and account["files_not_read"]["by"] == {**by, **again}
    _write(tmp_path / "notes", {"README.md": WIKI, "b.md": WIKI})
    assert _source(tmp_path / "notes") == (WIKI_DOCUMENTS * 2, {})
    _write(tmp_path / "books", {"one": "A book.\n\nIts end.", "two.text": "Another.\n\nEnd."})
    assert _source(tmp_path / "books", "books") == (["A book. Its end.", "Another. End."], {})
    with pytest.raises(
        InputError, match=r"no text found when read as jsonl \(2 files not read: README.md \(no JSON\)"
    ):
        _read(tmp_path / "notes", "jsonl")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refused(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    _write(tmp_path, {"a.txt": WIKI})
    monkeypatch.setattr("data_prep.files._Counted.__init__", refused)
    with pytest.raises(InputError, match="a.txt: this user may not read it; make it readable, or move it away"):
        _read(tmp_path)


def test_json_lines_of_any_name(tmp_path, offline):
    lines = [b"".join(JSON_LINES.splitlines(keepends=True)[part::3]) for part in range(3)]
    packed = gzip.compress(json.dumps([json.loads(line) for line in lines[2].splitlines()]).encode())
    _write(
        tmp_path, {"a.jsonl": lines[0], "b.ndjson": lines[1], "c.json.gz": packed, "stats.json": '{"documents": 30}'}
    )
    wanted = [AS_READ[number] for part in range(3) for number in range(part, 30, 3)]
    for kind in ("jsonl", "dataset", "auto"):
        documents, account = _source(tmp_path, kind)
        assert documents == wanted and account["files_not_read"]["names"] == ['stats.json (no "text")']


def test_splits_of_local_tables(tmp_path, monkeypatch):
    """By the names of files and folders, in an archive too; a file that is given itself needs none."""
    table, other = TABLES["x.parquet"], _arrow(lambda table, out: pq.write_table(table.slice(0, 2), out))
    _write(tmp_path / "d", {"train-0.parquet": table, "deep/test/0.parquet": other, "all.parquet": table})
    _tar(tmp_path / "d.tar", *(tmp_path / "d").iterdir())
    documents, account = _source(tmp_path / "d")
    assert documents == AS_READ and account["files_not_read"]["by"] == {"split test": 1, "split without a name": 1}
    monkeypatch.chdir(tmp_path)
    for place in ("d", "d.tar", "d/deep/test/0.parquet", "./d/deep/test/"):  # of what is given no name counts
        split = "train" if "deep" in place else "test"
        assert _source(place, "dataset", dataset_split=split)[0] == AS_READ[:2]
    with pytest.raises(InputError, match=r"dataset_split dev: .* has no file of it; it has \['test', 'train'"):
        _read(tmp_path / "d", dataset_split="dev")
    with pytest.raises(InputError, match="dataset_split test: .* is one file"):
        _read(tmp_path / "d" / "all.parquet", dataset_split="test")


@pytest.mark.parametrize("name", ["data [v1]", "a?b", "x::y", "*", "a b#c%20", "{x}"])
def test_a_path_is_no_pattern(tmp_path, name, offline, configured):
    folder = tmp_path / "other" / name
    _write(folder, {"0.parquet": TABLES["x.parquet"], "a [1].jsonl": JSON_LINES})
    assert _read(folder) == AS_READ * 2
    both = datasets.DatasetDict(
        {split: datasets.Dataset.from_list(ROWS[:n]) for split, n in (("train", 3), ("test", 2))}
    )
    both.save_to_disk(tmp_path / "saved")
    (tmp_path / "saved").rename(folder / "saved")
    assert _read(folder / "saved", "dataset", dataset_split="test") == AS_READ[:2]
    (tmp_path / "en-train-0.parquet").rename(folder / "en-train-0.parquet")
    (tmp_path / "README.md").rename(folder / "README.md")
    if re.search(r"[][*?]", name):
        with pytest.raises(InputError, match="for a pattern; rename the folder"):
            _read(folder, "dataset")


def test_names_that_cannot_be_of_the_hub(tmp_path, offline, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("data/x.jsonl", "x.parquet", str(tmp_path / "none"), "none/x.csv.gz", "./none", "../none"):
        for kind in ("auto", "dataset"):
            with pytest.raises(InputError, match=f"input {path}: no such file or folder"):
                _read(path, kind)


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le", "shift_jis"])
def test_an_encoding_is_named(tmp_path, encoding):
    text = "Käfer fährt.\n\n" * 3 if encoding != "shift_jis" else "日本語の文。\n\n" * 3
    wanted = [text.strip().split("\n")[0]] * 3
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    (tmp_path / "a.csv").write_bytes(f"text\r\n{wanted[0]}\r\n".encode(encoding))
    assert _read(tmp_path / "a.txt", "text", encoding=encoding) == wanted
    assert _read(tmp_path / "a.csv", "dataset", encoding=encoding) == wanted[:1]
    if encoding != "utf-16-le":
        with pytest.raises(InputError, match="is not UTF-8; name the encoding"):
            _read(tmp_path / "a.txt", "text")
        with pytest.raises(InputError, match="byte 0x.. is not ascii; name the encoding it has"):
            _read(tmp_path / "a.txt", "text", encoding="ascii")
    else:
        with pytest.raises(InputError, match="stream does not start with BOM .utf-16-le has none.; name the encoding"):
            _read(tmp_path / "a.txt", "text", encoding="utf-16")
    for unknown in ("cp12", "idna"):
        with pytest.raises(InputError, match=f"encoding '{unknown}' is unknown; give one of Python's"):
            _read(tmp_path / "a.txt", encoding=unknown)


def test_replaced_characters_are_counted(tmp_path):
    _write(tmp_path, {"a.txt": "Käfer \ufffd fährt\n".encode("utf-8").replace(b"\xc3", b"")})
    documents, account = _source(tmp_path, "text", errors="replace")
    assert documents == ["K\ufffdfer \ufffd f\ufffdhrt"] and account == {"replaced_characters": 2}
    page = b"<page><title>A</title><ns>0</ns><revision><text>Caf\xe9 au lait is a drink.</text></revision></page>"
    _write(tmp_path, {"dump.xml": b"<mediawiki>" + page + b"</mediawiki>"})
    documents, account = _source(tmp_path / "dump.xml", errors="replace")
    assert documents == ["A Caf\ufffd au lait is a drink."] and account == {"replaced_characters": 1}


@pytest.mark.parametrize("mark", ["utf-16", "utf-16-be", "utf-32", "utf-32-be", "utf-8-sig"])
def test_a_byte_order_mark_wins(tmp_path, mark):
    text = WIKI if mark[-2:] != "be" else f"\ufeff{WIKI}"
    _write(tmp_path, {"a.txt": text.encode(mark), "b.txt": WIKI.encode()})
    assert _read(tmp_path) == WIKI_DOCUMENTS * 2
    assert _read(tmp_path / "a.txt", "text", encoding="cp1252") == WIKI_DOCUMENTS


@pytest.mark.parametrize(
    "name, content, options, message",
    [
        ("x.csv", b'sep=,\nid,text\n1,"Hello" he said\n', {}, "line 3: .* expected after .*; check its quotes"),
        ("x.csv", b'text,"a"b\nc,d\n', {}, "line 1: .* expected after .*; check its quotes"),
        ("x.tsv", b'id\ttext\n1\t"a\n2\n', {}, "line 3 ends a row of 1 fields where the header has 2"),
        ("x.csv", b"text,id\na,1\nb\n", {}, "line 3 ends a row of 1 fields where the header has 2"),
        (
            "x.jsonl",
            b'{"text": "a"}\n{"text": "b',
            {},
            r'line 2 is not a JSON object with "text" \(damaged, or cut off',
        ),
        ("x.json", b'[{"text": "a"},\n {"te', {}, r'line 1 is not a JSON object with "text" \(damaged, or cut off'),
        ("x.json", b'[1, "b"]', {}, 'row 1 is not a JSON object with "text"'),
        ("x.json", b'{"data": ["a", "b"]}', {}, 'row 1 is not a JSON object with "text"'),
        ("x.jsonl", b'{"text": ' + b"[" * 100_000, {}, r'line 1 is not a JSON object with "text" \(damaged'),
        ("x.parquet", TABLES["x.parquet"][:900], {}, "damaged or no parquet"),
        ("x.parquet", TABLES["x.parquet"], {"text_column": "id"}, "holds int, no text; name another"),
        ("x.parquet", TABLES["x.parquet"], {"text_column": "inner.none"}, "text_column 'inner.none' is not in"),
        ("x.txt", WIKI.encode("utf-16-le"), {}, "the encoding of UTF-16 without its mark"),
    ],
)
def test_damaged_tables(tmp_path, name, content, options, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        _read(tmp_path / name, **options)


@pytest.mark.parametrize(
    "name, content",
    [
        ("pandas.json", '{"id": {"0": 1, "1": 2}, "text": {"0": "One, a.", "1": "\\"Two\\" b."}}'),
        ("index.json", '{"0": {"id": 1, "text": "One, a."}, "1": {"id": 2, "text": "\\"Two\\" b."}}'),
        ("texts.json", '["One, a.", "\\"Two\\" b."]'),
        ("joined.json", '{"text": "One, a."}{"text": "\\"Two\\" b."}'),
        ("jq.jsonl", '{\n "text": "One, a."\n}\n{\n "text": "\\"Two\\" b."\n}\n'),
        ("excel.csv", 'sep=;\r\n"text";"id"\r\n"One, a.";1\r\n"""Two"" b.";2\r\n'),
        ("header.csv", '\n"a;b;c",text\n1,"One, a."\n2,"""Two"" b."\n'),
        ("plain.tsv", 'id\ttext\n1\tOne, a.\n2\t"Two" b.\n'),
        ("quoted.tsv", '"id"\t"text"\n1\t"One,\na."\n2\t"""Two"" b."\n'),
    ],
)
def test_tables_of_other_programs(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert _read(tmp_path / name) == ["One, a.", '"Two" b.']
    (tmp_path / "open.tsv").write_text('id\ttext\n1\t"Two\n2\tb"\n3\t"""Two"" b."\n')
    assert _read(tmp_path / "open.tsv") == ['"Two', 'b"', '"Two" b.'], "an open quote swallows no row"


def test_a_key_with_a_dot(tmp_path):
    _write(tmp_path, {"x.jsonl": '{"a.b": "One."}\n{"a.b": "Two."}\n{"a": {"b": "Three."}}\n'})
    assert _read(tmp_path / "x.jsonl", text_column="a.b") == ["One.", "Two.", "Three."]


def test_a_record_of_20_megabytes(tmp_path):
    text = "word " * 4_000_000
    _write(tmp_path, {"a.jsonl": json.dumps({"text": "One."}) + "\n" + json.dumps({"text": text})})
    first, *rest = _read(tmp_path / "a.jsonl")
    assert first == "One." and len("".join(rest)) == len(text.strip())


def test_documents_by_lines(tmp_path, capsys):
    _write(tmp_path, {"a.txt": "".join(f"Line {number}.\n" for number in range(1500))})
    assert len(_read(tmp_path, "text")) == 1
    assert "a.txt: 1,500 lines and no blank line: one document; if each line is one, give --documents lines" in (
        capsys.readouterr().out
    )
    assert _read(tmp_path, documents_end="lines") == [f"Line {number}." for number in range(1500)]
    _write(tmp_path, {"b.txt": "A. \n\n B.\n"})
    assert _read(tmp_path / "b.txt", documents_end="lines") == ["A.", "B."]
    with pytest.raises(InputError, match="documents lines: only for kind text"):
        _read(tmp_path, "books", documents_end="lines")
    with pytest.raises(InputError, match="documents 'line' is unknown; choose of blank, lines"):
        _read(tmp_path, documents_end="line")

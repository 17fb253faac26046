"""Readers: forms, kinds found by looking, and what they refuse."""

import bz2
import gzip
import importlib.util
import json
import lzma
import random
import tarfile
import tracemalloc

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from budget_trainer.core.errors import InputError
from data_prep.files import files_below, lines, members
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
    articles = [{"id": "3", "text": "B\n\nText\u2028of B."}, {"id": "4", "text": ""}, {"text": "half \ud800 pair"}]
    (folder / "wiki_01").write_text("\n".join(map(json.dumps, articles)))
    assert Source(str(tmp_path)).kind == "wikiextractor"
    assert _read(tmp_path) == ["A Text of A.", "B Text\u2028of B.", "half ? pair"]


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
    if importlib.util.find_spec("zstandard"):
        assert _read(tmp_path / "zstd") == EXPECTED[:4]
    else:
        with pytest.raises(InputError, match="zstd not supported .pip install zstandard."):
            _read(tmp_path / "zstd")


def test_configuration_split_and_column(configured, tmp_path):
    where = {"dataset_config": "de", "dataset_split": "test", "text_column": "body", "cache_dir": tmp_path / "cache"}
    expected = [f"de test {part}" + " word" * n for part in range(2) for n in range(3)]
    assert _read(configured, **where) == expected
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
    with pytest.raises(InputError, match=f"input {tmp_path}: the dataset .* cannot be read"):
        _read(tmp_path)

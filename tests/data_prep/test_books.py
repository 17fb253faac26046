"""Books as they come: hard-wrapped, with a BOM and CRLF, inside Gutenberg's header and licence."""

import pytest

from data_prep.sources import _book_lines, read_documents
from tests.conftest import SHARED_DATA

HEADER = """The Project Gutenberg EBook of A Tale, by A. Nobody

This eBook is for the use of anyone anywhere at no cost.

Title: A Tale
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

CHAPTER II

"The END of it," she said, "is where we began."
"""
WANTED = [line for line in BOOK.split("\n") if line.strip()]
LICENCE = "\nUpdated editions will replace the previous one.\n\nSection 1. General Terms of Use\n"


@pytest.mark.parametrize(
    "text",
    [
        BOOK,
        f"{HEADER}\n*** START OF THIS PROJECT GUTENBERG EBOOK A TALE ***\n\n\n{BOOK}",
        f"{HEADER}\n*** START OF THE PROJECT GUTENBERG EBOOK A TALE ***\n{BOOK}\n"
        f"*** END OF THE PROJECT GUTENBERG EBOOK A TALE ***\n{LICENCE}",
        f"{HEADER}\n***START OF THE PROJECT GUTENBERG EBOOK A TALE***\n\n\nE-text prepared by A. Hand\nand others\n\n"
        f"\n{BOOK}\n\n"
        f"***END OF THE PROJECT GUTENBERG EBOOK A TALE***\n{LICENCE}",
        f"{HEADER}\n*** START OF THIS PROJECT GUTENBERG EBOOK A TALE ***\n\nProduced by A. Hand\n\n{BOOK}\n\n\n"
        f"End of the Project Gutenberg EBook of A Tale, by A. Nobody\n\n*** END OF THIS PROJECT GUTENBERG EBOOK ***\n{LICENCE}",
        f"{SMALL_PRINT}\n*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n\n{BOOK}\n"
        "End of Project Gutenberg's A Tale, by A. Nobody\n",
        f"{SMALL_PRINT}\n*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.02.11.02*END*\n\n{BOOK}",
    ],
)
def test_the_book_stays_and_nothing_else(text):
    assert list(_book_lines(text.split("\n"))) == WANTED


def test_a_mark_far_behind_the_head_is_the_books_own():
    lines = ["A line."] * 2000 + ["*** START OF THE PROJECT GUTENBERG EBOOK ***", "Another."]
    assert list(_book_lines(lines)) == lines


def test_read_as_one_document(tmp_path):
    text = f"{HEADER}\n*** START OF THE PROJECT GUTENBERG EBOOK A TALE ***\n{BOOK}*** END OF THE PROJECT GUTENBERG EBOOK ***\n"
    (tmp_path / "tale.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert list(read_documents(tmp_path, "books")) == [" ".join(WANTED)]


@pytest.mark.skipif(not (SHARED_DATA / "books_hardwrapped.tar.xz").exists(), reason="needs the shared data")
def test_hard_wrapped_novels_lose_no_word():
    import tarfile

    path = SHARED_DATA / "books_hardwrapped.tar.xz"
    with tarfile.open(path) as archive:
        raw = [
            archive.extractfile(member).read()
            for member in archive
            if member.isfile() and member.name.endswith(".txt")
        ]
    documents = list(read_documents(path, "books"))
    assert len(documents) == len(raw) == 12
    assert [document.split() for document in documents] == [text.decode("utf-8-sig").split() for text in raw]

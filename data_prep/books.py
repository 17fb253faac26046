"""What Project Gutenberg puts around a book: its header, its small print and its licence are cut, the book stays."""

import itertools
import re
from collections.abc import Iterable, Iterator

HEAD_LINES = 1000  # a header ends in these; older small print takes 300
_HEAD_ENDS = re.compile(
    r"\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG|\*END ?\*? ?THE SMALL PRINT|\*\*\* ?START: FULL LICENSE",
    re.IGNORECASE,
)
_BOOK_ENDS = re.compile(
    r"\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG|(?:This is the )?End of (?:the |this )?Project Gutenberg(?:'s|\u2019s)? ",
    re.IGNORECASE,
)
_CREDIT = re.compile(
    r"(?:E-text |Etext |This (?:e-?text|ebook) was )?(?:Produced|Prepared|Transcribed) by ", re.IGNORECASE
)


def book_lines(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a book that are not blank, without header and licence where it carries Gutenberg's marks.

    A header is cut to the last of its marks in the first HEAD_LINES lines, with the credits ("Produced by ...") behind it; the
    licence from the mark of the book's end on. A book without marks comes through whole.
    """
    lines = iter(lines)
    head = list(itertools.islice(lines, HEAD_LINES))
    marks = [number for number, line in enumerate(head) if _HEAD_ENDS.match(line.strip())]
    if marks:
        head = _without_credits(head[marks[-1] + 1 :])
    for line in itertools.chain(head, lines):
        if _BOOK_ENDS.match(line.strip()):
            return
        if line.strip():
            yield line


def _without_credits(lines: list[str]) -> list[str]:
    """Without the first paragraph, where it says who made the electronic text."""
    first = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
    if first < len(lines) and _CREDIT.match(lines[first].strip()):
        blank = (number for number, line in enumerate(lines[first:], first) if not line.strip())
        return lines[next(blank, len(lines)) :]
    return lines

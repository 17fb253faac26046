"""What other tools have extracted: WikiExtractor's two forms, and JSON lines such as datatrove writes."""

import json
from collections.abc import Iterable, Iterator

from budget_trainer.core.errors import InputError


def wikiextractor_articles(name: str, lines: Iterable[str]) -> Iterator[list[str]]:
    """The paragraphs of each article: <doc ...> paragraphs </doc>, or one JSON object with "text" per line; both may stand in
    one folder. InputError naming the line that is neither."""
    article: list[str] | None = None  # the paragraphs since <doc>
    for number, line in enumerate(lines, 1):
        if line.startswith("<doc "):
            article = []
        elif line.strip() == "</doc>" and article is not None:
            yield article
            article = None
        elif article is not None:
            if line.strip():
                article.append(line)
        elif line.startswith("{"):
            yield _paragraphs_of_object(name, number, line, "text", "extract anew")
        elif line.strip():
            raise InputError(f"input {name}: line {number} stands outside <doc>...</doc>; check the file or --kind")
    if article is not None:
        raise InputError(f"input {name}: the last <doc> is not closed (cut off?); extract or fetch it again")


def json_line_texts(name: str, lines: Iterable[str], column: str) -> Iterator[list[str]]:
    """The paragraphs of each object's text; what stands beside it may differ from line to line, in names and types."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _paragraphs_of_object(name, number, line, column, "check the file or text_column")


def _paragraphs_of_object(name: str, number: int, line: str, column: str, fix: str) -> list[str]:
    try:
        return text_paragraphs(json.loads(line)[column] or "")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f'input {name}: line {number} is not a JSON object with "{column}"; {fix}') from error


def text_paragraphs(text: str) -> list[str]:
    """The lines that are not blank, in characters that UTF-8 can hold (JSON may hold half a surrogate pair)."""
    text = text.encode("utf-8", "replace").decode().replace("\r\n", "\n").replace("\r", "\n")
    return [line for line in text.split("\n") if line.strip()]

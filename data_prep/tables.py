"""The texts in a column of a table: Parquet, Arrow, CSV, TSV, JSON and JSON lines, as streams but for JSON in one piece."""

import csv
import io
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from budget_trainer.core.errors import InputError
from data_prep.files import plain_name, seekable

JSON_LINES = re.compile(r"(?i)\.(?:jsonl|ndjson|jl)$")
TABLES = re.compile(r"(?i)\.(?:parquet|arrow|csv|tsv|jsonl|ndjson|jl|json)$")
_JSON = re.compile(rb'(?:\xef\xbb\xbf)?\s*(?:\{\s*"|\[\s*\{)')


class NoColumn(InputError):
    """A row without the column that was asked for."""


def table_form(name: str, stream: io.BufferedReader, form: str) -> str:
    """parquet, arrow, csv or json, or "" for what is no table. form: that of `form_of`, which wins over the name."""
    if form or _JSON.match(stream.peek()):
        return form if form in ("parquet", "arrow") else "" if form else "json"
    suffix = TABLES.search(plain_name(name))
    kind = suffix[0][1:].lower() if suffix else ""
    return {"tsv": "csv", "jsonl": "json", "ndjson": "json", "jl": "json"}.get(kind, kind)


def column_texts(name: str, form: str, stream: io.BufferedReader, lines: Iterable[str], column: str) -> Iterator[str]:
    """The texts in `column`, or for "a.b" those in b of the objects in a; "" where a row has none.

    form: of `table_form`; lines: those of the stream, whole. InputError: damaged, or a row that holds no text."""
    try:
        if form == "json":
            yield from _json_texts(name, iter(lines), column)
        else:
            rows = _csv_texts(name, iter(lines), column) if form == "csv" else _arrow_texts(name, form, stream, column)
            for text in rows:
                if not isinstance(text, str | None):
                    raise InputError(
                        f"text_column {column!r} of {name} holds {type(text).__name__}, no text; name another"
                    )
                yield text or ""
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"input {name}: damaged or no {form} ({reason}); fetch the file again") from error


def _at(row: Any, column: str) -> Any:
    for key in [column] if column in row else column.split("."):
        row = row[key]
    return row


def _no_column(name: str, column: str, names: Iterable[str]) -> NoColumn:
    return NoColumn(f"text_column {column!r} is not in {name}; it has {sorted(names)}")


def _arrow_texts(name: str, form: str, stream: io.BufferedReader, column: str) -> Iterator[Any]:
    is_file = stream.peek().startswith(b"ARROW1")
    with seekable(stream) as file:
        table = (
            pq.ParquetFile(file) if form == "parquet" else (pa.ipc.open_file if is_file else pa.ipc.open_stream)(file)
        )
        names = (table.schema_arrow if form == "parquet" else table.schema).names
        top = column if column in names else column.split(".")[0]
        if top not in names:
            raise _no_column(name, column, names)
        if form == "parquet":
            batches = table.iter_batches(256, columns=[column])
        else:
            batches = map(table.get_batch, range(table.num_record_batches)) if is_file else table
        for batch in (whole.slice(at, 256) for whole in batches for at in range(0, whole.num_rows, 256)):
            for row in batch.select([top] if top in batch.schema.names else []).to_pylist():
                try:
                    yield row[top] if row[top] is None else _at(row, column)
                except (KeyError, TypeError):
                    raise _no_column(name, column, names) from None


def _csv_texts(name: str, lines: Iterator[str], column: str) -> Iterator[str]:
    csv.field_size_limit(sys.maxsize)
    # Above the header there may be a line "sep=;" of Excel.
    above, first = next(((n, line) for n, line in enumerate(lines) if not re.fullmatch(r"sep=.|\s*", line)), (0, ""))
    has = {mark: column in next(csv.reader([first], delimiter=mark), []) for mark in ",\t;|"}
    delimiter = max(has, key=lambda mark: (has[mark], first.count(mark)))

    def wrong(line: int, what: object) -> InputError:
        return InputError(f"input {name}: line {above + line}{what}; check its quotes and delimiters")

    lines = itertools.chain([first], lines)
    rows = _tab_rows(lines, first.count("\t")) if delimiter == "\t" else _quoted_rows(lines, delimiter, wrong)
    _, header = next(rows, (0, []))
    if column not in header:
        raise _no_column(name, column, header)
    for line, row in rows:
        if len(row) == len(header):
            yield row[header.index(column)]
        elif any(row):
            raise wrong(line, f" ends a row of {len(row)} fields where the header has {len(header)}")


def _quoted_rows(
    lines: Iterable[str], delimiter: str, wrong: Callable[[int, object], InputError]
) -> Iterator[tuple[int, list[str]]]:
    """The fields of each row, and the number of its last line."""
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise wrong(reader.line_num, f": {error}") from error


def _tab_rows(lines: Iterable[str], tabs: int) -> Iterator[tuple[int, list[str]]]:
    """As `_quoted_rows`, of lines with `tabs` each. In most such files quotes are text: those that do not enclose a field are,
    and an open one holds further lines only where these do not look like rows."""
    rows: Iterator[tuple[int, str | None]] = itertools.chain(enumerate(lines, 1), [(0, None)])
    number, line = next(rows)
    while line is not None:
        following, more = next(rows)
        row = [line] if "\n" in line else line.split("\t")
        if '"' in line:
            try:
                row = next(csv.reader([line], delimiter="\t", strict=True))
            except csv.Error as error:
                if "end of data" in str(error) and more is not None and more.count("\t") != tabs:
                    number, line = following, f"{line}\n{more}"
                    continue
        yield number, row
        number, line = following, more


def _json_texts(name: str, lines: Iterator[str], column: str) -> Iterator[str]:
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    for count, (number, line) in enumerate(numbered):
        row = parsed_json(line)
        try:
            text = json_text(name, f"line {number}", row, column)
        except NoColumn:
            following = None if count else next(numbered, None)
            cut_off = following and line.lstrip()[0] == "{" and isinstance(parsed_json(following[1]), dict)
            if count or cut_off or (following and (row is not None or line.lstrip()[0] not in "[{")):
                raise
            break  # JSON in one piece, on one line or several
        yield text
    else:
        return
    values = _json_values("\n".join([line, *(more for _, more in filter(None, [following, *numbered]))]))
    rows = values if len(values) > 1 else _records(values[0], column)
    for place, row in enumerate(rows, 1):
        yield json_text(name, f"{'line' if len(rows) == 1 else 'row'} {place}", row, column)


def parsed_json(text: str) -> Any:
    """The value, None where it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _json_values(text: str) -> list[Any]:
    """The values that stand in the text one behind the other; None for what is no JSON."""
    values, at, text = [], 0, text.strip()
    try:
        while at < len(text):
            value, end = json.JSONDecoder().raw_decode(text, at)
            values.append(value)
            at = end + len(text[end : end + 1000]) - len(text[end : end + 1000].lstrip())
    except (ValueError, RecursionError):
        values.append(None)
    return values


def _records(value: Any, column: str) -> list[Any]:
    """The rows of JSON in one piece: of a list (of texts too), of an object with one list, with a list or an object for each
    column, or with an object for each row."""
    if isinstance(value, list):
        return [{column: row} if isinstance(row, str) else row for row in value]
    if isinstance(value, dict):
        texts, parts = value.get(column), list(value.values())
        if isinstance(texts, list | dict):
            return [{column: text} for text in (texts if isinstance(texts, list) else texts.values())]
        lists = [part for part in parts if isinstance(part, list)]
        if len(lists) == 1:
            return lists[0]
        if parts and all(isinstance(part, dict) for part in parts):
            return parts
    return [value]


def json_text(name: str, place: str, row: Any, column: str) -> str:
    """The text in `column` of a row at `place`, "" where that is null; NoColumn where it has none."""
    try:
        text = _at(row, column)
        if not isinstance(text, str | None):
            raise TypeError
        return text or ""
    except (KeyError, TypeError) as error:
        has = f" (it has {sorted(row)})" if isinstance(row, dict) and column not in row else ""
        has = has or " (damaged, or cut off)" * (row is None)
        fix = "check the file or text_column"
        raise NoColumn(f'input {name}: {place} is not a JSON object with "{column}"{has}; {fix}') from error

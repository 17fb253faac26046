"""The texts in a column of a table: Parquet, Arrow, CSV, TSV, JSON and JSON lines, as streams but for JSON in one piece."""

import csv
import io
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator
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
        for batch in batches:
            for row in batch.select([top] if top in batch.schema.names else []).to_pylist():
                try:
                    yield row[top] if row[top] is None else _at(row, column)
                except (KeyError, TypeError):
                    raise _no_column(name, column, names) from None


def _csv_texts(name: str, lines: Iterator[str], column: str) -> Iterator[str]:
    csv.field_size_limit(sys.maxsize)
    first = next(lines, "")
    delimiter = max(",\t;|", key=first.count)
    reader = csv.reader((f"{line}\n" for line in itertools.chain([first], lines)), delimiter=delimiter, strict=True)
    header = next(reader, [])
    if column not in header:
        raise _no_column(name, column, header)
    for row in filter(None, _checked(name, reader)):
        if len(row) != len(header):
            what = f"line {reader.line_num} ends a row of {len(row)} fields where the header has {len(header)}"
            raise InputError(f"input {name}: {what}; check its quotes and delimiters")
        yield row[header.index(column)]


def _json_texts(name: str, lines: Iterator[str], column: str) -> Iterator[str]:
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    for count, (number, line) in enumerate(numbered):
        row = parsed_json(line)
        record = isinstance(row, dict) and isinstance(row.get(column.split(".")[0], 0), str | dict | None)
        if not count and not record:
            following = next(numbered, None)
            if following and row is None and line.lstrip()[0] in "[{":  # JSON in one piece, on several lines
                row, following = parsed_json("\n".join([line, following[1], *(more for _, more in numbered)])), None
            if following is None:
                rows = _records(row, column)
                for place, row in enumerate(rows, 1):
                    yield json_text(name, f"{'line' if len(rows) == 1 else 'row'} {place}", row, column)
                return
        yield json_text(name, f"line {number}", row, column)


def _checked(name: str, rows: Any) -> Iterator[list[str]]:
    try:
        yield from rows
    except csv.Error as error:
        raise InputError(f"input {name}: line {rows.line_num}: {error}; check its quotes and delimiters") from error


def parsed_json(text: str) -> Any:
    """The value, None where it is no JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _records(value: Any, column: str) -> list[Any]:
    """The rows of JSON in one piece: of a list, of an object with one list, or of one with a list for each column."""
    lists = [part for part in value.values() if isinstance(part, list)] if isinstance(value, dict) else []
    if isinstance(value, dict) and isinstance(value.get(column), list):
        return [{column: text} for text in value[column]]
    return lists[0] if len(lists) == 1 else value if isinstance(value, list) else [value]


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

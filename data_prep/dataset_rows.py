"""Rows of a Hugging Face dataset as text: of the Hub, or of local JSON lines, Parquet, CSV or `save_to_disk`; streamed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from budget_trainer.core.errors import InputError


def read_rows(path: str, config: str | None, split: str, column: str, cache_dir: Path | None) -> Iterator[str]:
    """The texts in `column`, "" where a row has none. InputError naming what cannot be reached or is not there."""
    try:
        for row in _rows(path, config, split, column, cache_dir):
            if column not in row:
                raise InputError(f"text_column {column!r} is not in {path}; it has {sorted(row)}")
            text = row[column]
            if not isinstance(text, str | None):
                raise InputError(
                    f"text_column {column!r} of {path} holds {type(text).__name__}, no text; name another"
                )
            yield text or ""
    except InputError:
        raise
    except (ValueError, TypeError, OSError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        hint = " (pip install zstandard)" if "zstd" in reason else ""
        raise InputError(
            f"input {path}: the dataset (config {config}, split {split}) cannot be read: {reason[:300]}{hint}; check "
            "input, dataset_config and dataset_split"
        ) from error


def _rows(path: str, config: str | None, split: str, column: str, cache_dir: Path | None) -> Any:
    if (Path(path) / "state.json").exists():  # written by save_to_disk
        return datasets.load_from_disk(path)
    builder = datasets.load_dataset_builder(path, config, cache_dir=None if cache_dir is None else str(cache_dir))
    rows = builder.as_streaming_dataset(split=split)
    # Of Parquet only the text is fetched; and files whose other columns differ in type, as datatrove's "metadata" may,
    # could not be read together.
    if getattr(builder.config, "columns", "") is None and column in (rows.features or ()):
        builder.config.columns = [column]
        rows = builder.as_streaming_dataset(split=split)
    return rows

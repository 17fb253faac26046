"""What a model was trained on, in the words of its data folder's manifest. A leaf."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHOWN_SOURCES = 20


def describe_data(data_dir: Path) -> dict[str, Any]:
    """What `data_dir`/manifest.json says of the corpus, for the report: sources by name, without folders of this machine.

    Counts are documents, bytes of text, tokens and blocks. Raises OSError or ValueError where it cannot be read.
    """
    manifest = json.loads((data_dir / "manifest.json").read_text(encoding="utf-8"))
    train, validation = manifest["splits"]["train"], manifest["splits"].get("validation") or {}
    held_out = manifest.get("validation") or {}
    described = {name: train.get(name) for name in ("rows", "tokens", "documents", "text_bytes")}
    described |= {name: manifest.get(name) for name in ("block_size", "packing", "vocab_size", "created")}
    described |= {"validation_rows": validation.get("rows"), "validation_fraction": held_out.get("fraction")}
    if held_out.get("text"):
        described["validation_text"] = source_name(held_out["text"])
    described["sources"] = [_source(source) for source in manifest.get("sources") or []]
    return {key: value for key, value in described.items() if value is not None}


def _source(source: Mapping[str, Any]) -> dict[str, Any]:
    counts = {name: source[name] for name in ("kind", "documents", "text_bytes", "dropped") if source.get(name)}
    return {"name": source_name(str(source.get("path", "?"))), **counts}


def source_name(path: str) -> str:
    """`owner/name` of the Hub as it is, of a path its last part."""
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", path) and not Path(path).exists():
        return path
    return Path(path).name or path


def rows(data: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Name, form, documents and megabytes of the sources that `describe_data` found; many become one row at the end."""
    sources = list(data.get("sources") or [])
    shown, rest = sources[:SHOWN_SOURCES], sources[SHOWN_SOURCES:]
    if rest:
        shown.append(
            {
                "name": f"{len(rest)} more",
                "documents": sum(source.get("documents") or 0 for source in rest),
                "text_bytes": sum(source.get("text_bytes") or 0 for source in rest),
            }
        )
    return [
        (
            str(source["name"]),
            str(source.get("kind", "")),
            f"{source['documents']:,}" if source.get("documents") else "",
            f"{source['text_bytes'] / 1e6:,.1f}" if source.get("text_bytes") else "",
        )
        for source in shown
    ]

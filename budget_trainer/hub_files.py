"""What of a folder is published, as revisions of a model repository: known files only, no pickle, no code. A leaf."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budget_trainer.errors import InputError

MAIN, CARD, REPORT, PICTURE = "main", "README.md", "run_report.json", "run_report.png"
FINAL = "final"
MARK = re.compile(r"finetune-(\d+(?:\.\d+)?)")  # a time-marked model's folder, by per cent of the budget
_KNOWN = re.compile(
    r"config\.json|generation_config\.json|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|"
    r"added_tokens\.json|vocab\.json|vocab\.txt|merges\.txt|(?:spiece|sentencepiece\.bpe|spm|tokenizer)\.model|"
    r"chat_template\.jinja|[\w.-]+\.safetensors(?:\.index\.json)?|README\.md|(?:LICENSE|NOTICE)(?:\.txt|\.md)?|"
    r"(?:run|glue)_report\.(?:json|png|md)"
)
_TOKENIZERS = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model"),
    *("spiece.model", "spm.model", "sentencepiece.bpe.model"),
)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack", ".joblib", ".npy", ".npz")


@dataclass(frozen=True)
class Revision:
    """One revision of the repository: `files` by their name there, on disk or as bytes; `left_out` stays here."""

    name: str
    files: dict[str, Path | bytes]
    left_out: tuple[str, ...] = ()

    @property
    def weights(self) -> list[str]:
        return [name for name in self.files if name.endswith(".safetensors")]


def is_run(folder: Path) -> bool:
    """Whether `folder` is the output folder of a run, rather than of one model."""
    return (folder / FINAL).is_dir() or (bool(marked(folder)) and not (folder / "config.json").exists())


def marked(folder: Path) -> list[Path]:
    """The time-marked models of a run that are complete (they are renamed into place), by their share."""
    found = [(match, path) for path in folder.glob("finetune-*") if (match := MARK.fullmatch(path.name))]
    return [path for match, path in sorted(found, key=lambda pair: float(pair[0].group(1)))]


def read_revisions(folder: Path) -> list[Revision]:
    """What `folder` holds: time-marked models under their names, then the finished one as `main`. Cards come later.

    InputError for a folder that holds no model, or one that may not be published.
    """
    if not folder.is_dir():
        raise InputError(f"publish: {folder} is not a folder; give a run's --output_dir, or the folder of a model")
    if not is_run(folder):
        return [read_model(folder, MAIN)]
    final = [read_model(folder / FINAL, MAIN)] if (folder / FINAL).is_dir() else []
    return [read_model(path, path.name) for path in marked(folder)] + final


def read_model(folder: Path, name: str) -> Revision:
    """The model in `folder` as the revision `name`. InputError where it is not one, or its files are not safe to load."""
    config = _read_json(folder / "config.json", folder)
    if "auto_map" in config:
        raise InputError(
            f"publish: {folder} needs code of its own (auto_map in config.json), which is not published; use a type that "
            "Transformers has"
        )
    entries = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    files: dict[str, Path | bytes] = {}
    for path in entries:
        if path.is_file() and _KNOWN.fullmatch(path.name):
            files[path.name] = path
    revision = Revision(name, files, tuple(path.name for path in entries if path.name not in files))
    _check_weights(folder, revision)
    if not any(name in files for name in _TOKENIZERS):
        raise InputError(
            f"publish: {folder} has no tokenizer ({_TOKENIZERS[0]}, {_TOKENIZERS[1]}, ...); save it there with "
            "tokenizer.save_pretrained"
        )
    return revision


def _read_json(path: Path, folder: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content) if "model_type" in content else _no_model(folder, "config.json names no model_type")
    except FileNotFoundError:
        return _no_model(folder, "no config.json")
    except (OSError, ValueError, TypeError) as error:
        return _no_model(folder, f"config.json cannot be read: {error}")


def _no_model(folder: Path, reason: str) -> dict[str, Any]:
    raise InputError(
        f"publish: {folder} is not a model's folder ({' '.join(reason.split())}); give a run's --output_dir, or a folder that "
        "save_pretrained wrote"
    )


def _check_weights(folder: Path, revision: Revision) -> None:
    pickles = [name for name in revision.left_out if name.endswith(PICKLES)]
    if not revision.weights:
        reason = f"only {pickles[0]}, whose format can run code when it is loaded" if pickles else "none"
        raise InputError(
            f"publish: {folder} has no weights as safetensors ({reason}); save them with model.save_pretrained"
        )
    for name in revision.weights:
        if not is_safetensors(folder / name):
            raise InputError(f"publish: {folder / name} is no complete safetensors file; save the model anew")
    for index in [name for name in revision.files if name.endswith(".safetensors.index.json")]:
        content = json.loads((folder / index).read_text(encoding="utf-8"))
        missing = set(content.get("weight_map", {}).values()) - set(revision.weights)
        if missing:
            raise InputError(
                f"publish: {folder} lacks {min(missing)}, which {index} names; save the model anew with save_pretrained"
            )


def is_safetensors(path: Path) -> bool:
    """Whether the file begins with a header of the format, and is as long as that says: 8 bytes, JSON, the tensors."""
    size = path.stat().st_size
    with open(path, "rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size, 100_000_000):
            return False
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return False
    return size == 8 + length + max(ends, default=0)

"""The file that `data_prep.prepare` follows: read, checked, and summed up so that a change is noticed."""

from __future__ import annotations

import contextlib
import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from budget_trainer.core.errors import InputError
from budget_trainer.core.io import json_types, user_path
from data_prep.block_folder import BlockOptions
from data_prep.cli import Output
from data_prep.corpus import HELD_OUT_RULE
from data_prep.files import files_below
from data_prep.filters import Lengths, check_language
from data_prep.options import Options, flag
from data_prep.sources import Source
from data_prep.tokenizer_training import TokenizerOptions

_FORMAT = 3  # raise it when the same recipe comes to give other blocks
SOURCE_KEYS = tuple(
    "input kind errors encoding documents dataset_config dataset_split text_column max_documents templates drop_holes".split()
)
_POSITIVE = (1e-6, math.inf)


@dataclass
class DataRecipe(Options):
    """What is to be made from what."""

    output: Output
    sources: list[Source]
    tokenizer: str | TokenizerOptions
    blocks: BlockOptions
    lengths: Lengths
    language: str | None = flag(None, "keep documents in this one")
    max_tokens_per_character: float | None = flag(None, "drop what the tokenizer compresses worse", within=_POSITIVE)
    deduplicate: bool = flag(True, "drop later copies")
    piece_megabytes: float = flag(128, "text between two points from which the work can go on", within=_POSITIVE)
    keep_work: bool = flag(False, "keep the folder of the work")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.language is not None:
            check_language(self.language)

    @classmethod
    def read(cls, file: Path, words: Sequence[str] = ()) -> DataRecipe:
        """The recipe in a YAML file, with `--key value` of a command line put over it. InputError for what is wrong in it."""
        try:
            given = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"recipe {file}: cannot be read ({' '.join(str(error).split())})") from None
        if not isinstance(given, dict):
            raise InputError(f"recipe {file}: holds no keys; see recipes/data/ for examples")
        given |= _overrides(words)
        known = [
            entry.name for kind in (DataRecipe, Lengths, BlockOptions) for entry in fields(kind) if entry.metadata
        ]
        _check_names(f"recipe {file}", given, ["output_dir", "overwrite", "sources", "tokenizer", *known])
        for name in ("output_dir", "sources", "tokenizer"):
            if not given.get(name):
                raise InputError(f"recipe {file}: {name} is missing; give it")
        blocks = _filled(BlockOptions, given)
        return _filled(
            DataRecipe,
            given,
            output=Output(
                Path(user_path(str(given["output_dir"]), "output_dir")),
                bool(_typed(given, "overwrite", bool)),
                how="overwrite: true",
            ),
            sources=_sources(given["sources"], blocks.num_proc),
            tokenizer=_tokenizer(given["tokenizer"]),
            blocks=blocks,
            lengths=_filled(Lengths, given),
        )

    def key(self, stage: str) -> dict[str, Any]:
        """What the result of a stage depends on; each holds that of the stages before it."""
        names = ["path", *(name if name != "documents" else "documents_end" for name in SOURCE_KEYS[1:])]
        sources = [{**{name: getattr(s, name) for name in names}, "files": _state(s.path)} for s in self.sources]
        key = {"format": _FORMAT, "sources": sources, "lengths": asdict(self.lengths)}
        if stage == "documents":
            return json_types(key)
        if isinstance(self.tokenizer, str):
            key |= {"tokenizer": self.tokenizer, "tokenizer_files": _state(self.tokenizer)}
        else:
            key |= {"tokenizer": asdict(self.tokenizer)}
        if stage == "tokenizer":
            return json_types(key)
        key |= {
            "deduplicate": self.deduplicate,
            "language": self.language,
            "max_tokens_per_character": self.max_tokens_per_character,
            "held_out": [self.blocks.held_out_fraction, HELD_OUT_RULE],
            "sentences": self.blocks.by_sentence,
        }
        if stage == "tokens":
            return json_types(key)
        no_result = ("num_proc", "max_unknown")
        options = {name: value for name, value in asdict(self.blocks).items() if name not in no_result}
        text = self.blocks.validation_text
        return json_types({**key, "blocks": options, "validation_files": _state(text) if text else None})

    def is_done(self) -> bool:
        """Whether the output was made by this recipe from these files."""
        try:
            manifest = json.loads(self.output.mark.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(manifest.get("recipe") == self.key("blocks"))


def _state(path: str) -> list[tuple[str, int, int]] | None:
    """Name, bytes and time of change of a local input's files; None for a name of the Hub."""
    here = Path(path)
    if not here.exists():
        return None
    files = files_below(here)
    return [(str(file.relative_to(here)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _overrides(words: Sequence[str]) -> dict[str, Any]:
    if len(words) % 2:
        raise InputError(f"command line: {words[-1]!r} has no value; write --key value")
    over = {}
    for key, value in zip(words[::2], words[1::2], strict=True):
        if not key.startswith("--"):
            raise InputError(f"command line: {key!r} is no flag; write --key value")
        if key == "--sources":
            raise InputError("command line: sources stand in the recipe; write them there")
        try:
            over[key.removeprefix("--")] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"command line: {key} {value!r} is no YAML value; put it in quotes of its own") from None
    return over


def _check_names(where: str, given: dict[str, Any], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise InputError(f"{where}: the key {name!r} is unknown; {hint}")


def _typed(given: Mapping[str, Any], name: str, kind: type) -> Any:
    value = given.get(name)
    if kind is float and not isinstance(value, bool | None):
        with contextlib.suppress(TypeError, ValueError):
            value = float(value)  # YAML has 1e-1 as a string, and 1 as an int
    if value is None or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
        return value
    hint = " (YAML reads some words as true or false: put quotes around them)" if isinstance(value, bool) else ""
    raise InputError(f"{name}: {value!r} is not a {kind.__name__}{hint}")


def _filled(options: type, given: dict[str, Any], **made: Any) -> Any:
    """The dataclass `options` of what is `made` and of its fields that are given, each of its type; null: the default."""
    hints = {name: hint for name, hint in get_type_hints(options).items() if name not in made}
    kinds = {name: (get_args(hint) or (hint,))[0] for name, hint in hints.items() if given.get(name) is not None}
    about = {entry.name: entry.metadata for entry in fields(options)}
    words = {
        name: "yes" if given[name] else "no" for name in kinds if isinstance(given[name], bool)
    }  # YAML's yes and no
    given = given | {n: word for n, word in words.items() if word in (about[n].get("choices") or ())}
    values = {name: _typed(given, name, kind) for name, kind in kinds.items()}
    return options(**made, **{n: user_path(v, n) if about[n].get("path") else v for n, v in values.items()})


def _sources(given: Any, num_proc: int) -> list[Source]:
    if not isinstance(given, list):
        raise InputError("sources: not a list; write one `- input: PATH` for each")
    sources = []
    for number, entry in enumerate(given, 1):
        entry = {"input": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("input"), str):
            raise InputError(f"sources: number {number} has no input; write `- input: PATH`")
        _check_names(f"sources: number {number}", entry, SOURCE_KEYS)
        end, path = _typed(entry, "documents", str), user_path(entry["input"], "input")
        source = _filled(Source, {"path": path, "num_proc": num_proc, "documents_end": end, **entry})
        if entry.get("kind", "auto") == "auto":
            print(f"{source.path}: read as {source.kind} (kind says otherwise)")
        sources.append(source)
    return sources


def _tokenizer(given: Any) -> str | TokenizerOptions:
    if isinstance(given, str):
        return user_path(given, "tokenizer")
    if not isinstance(given, dict):
        raise InputError(f"tokenizer: {given!r} is neither a name nor a mapping such as {{vocab_size: 32768}}")
    _check_names("tokenizer", given, tuple(entry.name for entry in fields(TokenizerOptions)))
    try:
        return _filled(TokenizerOptions, given)
    except InputError as error:
        raise InputError(f"tokenizer: {error}") from None

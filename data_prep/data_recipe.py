"""The file that `data_prep.prepare` follows: read, checked, and summed up so that a change is noticed."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from budget_trainer.core.errors import InputError
from budget_trainer.core.io import json_types
from data_prep import blocks
from data_prep.documents import KINDS, Source
from data_prep.held_out import HELD_OUT_RULE
from data_prep.manifest import refuse_occupied
from data_prep.packers import BY_SENTENCE
from data_prep.processing import Lengths, check_language
from data_prep.tokenizer_training import TokenizerToTrain

FORMAT = 2  # raise it when the same recipe comes to give other blocks
BLOCK_FLAGS: tuple[str, ...] = ("block_size", "packing", "num_shards", "num_proc", "overwrite", "validation_fraction")
BLOCK_FLAGS += ("short_seq_prob", "validation_text", "validation_block_size", "max_validation_blocks")
OWN_KEYS: tuple[str, ...] = ("output_dir", "sources", "tokenizer", "min_characters", "max_characters", "language")
OWN_KEYS += ("max_tokens_per_character", "deduplicate", "piece_megabytes", "keep_work")
SOURCE_KEYS = ("input", "kind", "errors", "dataset_config", "dataset_split", "text_column", "max_documents")
OUTPUT = ("data folder", "manifest.json")  # as `written_aside` wants it
SOURCE_FIELDS = ("path", *SOURCE_KEYS[1:])
NO_RESULT = ("num_proc", "overwrite")  # they change nothing in the data


@dataclass
class DataRecipe:
    """What is to be made from what. `args` are those of data_prep.blocks."""

    output_dir: Path
    sources: list[Source]
    tokenizer: str | TokenizerToTrain
    args: argparse.Namespace
    lengths: Lengths = field(default_factory=Lengths)
    language: str | None = None
    max_tokens_per_character: float | None = None
    deduplicate: bool = True
    piece_megabytes: float = 128
    keep_work: bool = False

    def key(self, stage: str) -> dict[str, Any]:
        """What the result of a stage depends on; each holds that of the stages before it."""
        documents = {
            "format": FORMAT,
            "sources": [
                {**{name: getattr(s, name) for name in SOURCE_FIELDS}, "files": _state(s.path)} for s in self.sources
            ],
            "lengths": asdict(self.lengths),
        }
        if stage == "documents":
            return json_types(documents)
        tokenizer = self.tokenizer if isinstance(self.tokenizer, str) else asdict(self.tokenizer)
        trained = {**documents, "tokenizer": tokenizer}
        if isinstance(self.tokenizer, str):
            trained["tokenizer_files"] = _state(self.tokenizer)
        if stage == "tokenizer":
            return json_types(trained)
        tokens = {
            **trained,
            "deduplicate": self.deduplicate,
            "language": self.language,
            "max_tokens_per_character": self.max_tokens_per_character,
            "held_out": [blocks.held_out_share(self.args), HELD_OUT_RULE],
            "sentences": self.args.packing in BY_SENTENCE,
        }
        if stage == "tokens":
            return json_types(tokens)
        flags = {name: getattr(self.args, name) for name in BLOCK_FLAGS if name not in NO_RESULT}
        texts = _state(self.args.validation_text) if self.args.validation_text else None
        return json_types({**tokens, "blocks": flags, "validation_files": texts})

    def is_done(self) -> bool:
        """Whether the output was made by this recipe from these files."""
        try:
            manifest = json.loads((self.output_dir / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(manifest.get("recipe") == self.key("blocks"))

    def check_output(self) -> None:
        """InputError where the output is something that must not be replaced, before any work is done for it."""
        refuse_occupied(self.output_dir, True, *OUTPUT)
        if (self.output_dir / "manifest.json").exists() and not self.args.overwrite:
            raise InputError(
                f"output_dir {self.output_dir} holds something else than this recipe makes; give another path or "
                "--overwrite true"
            )


def _state(path: str) -> list[tuple[str, int, int]] | None:
    """Name, bytes and time of change of a local input's files; None for a name of the Hub."""
    here = Path(path)
    if not here.exists():
        return None
    files = [here] if here.is_file() else sorted(file for file in here.rglob("*") if file.is_file())
    return [(str(file.relative_to(here)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def read_data_recipe(file: Path, words: Sequence[str] = ()) -> DataRecipe:
    """The recipe in a YAML file, with `--key value` of a command line put over it. InputError for what is wrong in it."""
    try:
        given = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"recipe {file}: cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(given, dict):
        raise InputError(f"recipe {file}: holds no keys; see recipes/data/ for examples")
    given |= _overrides(words)
    _check_names(f"recipe {file}", given, (*OWN_KEYS, *BLOCK_FLAGS))
    for name in ("output_dir", "sources", "tokenizer"):
        if not given.get(name):
            raise InputError(f"recipe {file}: {name} is missing; give it")
    sources = _sources(given["sources"], max(1, _typed(given, "num_proc", int, None) or 2))
    language = _typed(given, "language", str, None)
    if language is not None:
        check_language(language)
    limit = _positive(given, "max_tokens_per_character", None)
    return DataRecipe(
        output_dir=Path(str(given["output_dir"])),
        sources=sources,
        tokenizer=_tokenizer(given["tokenizer"]),
        args=_block_args(given, sources),
        lengths=_lengths(given),
        language=language,
        max_tokens_per_character=limit,
        deduplicate=_typed(given, "deduplicate", bool, True),
        piece_megabytes=_positive(given, "piece_megabytes", 128.0),
        keep_work=_typed(given, "keep_work", bool, False),
    )


def _overrides(words: Sequence[str]) -> dict[str, Any]:
    if len(words) % 2:
        raise InputError(f"command line: {words[-1]!r} has no value; write --key value")
    over = {}
    for flag, value in zip(words[::2], words[1::2], strict=True):
        if not flag.startswith("--"):
            raise InputError(f"command line: {flag!r} is no flag; write --key value")
        if flag == "--sources":
            raise InputError("command line: sources stand in the recipe; write them there")
        try:
            over[flag.removeprefix("--")] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"command line: {flag} {value!r} is no YAML value; put it in quotes of its own") from None
    return over


def _check_names(where: str, given: dict[str, Any], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise InputError(f"{where}: the key {name!r} is unknown; {hint}")


def _typed(given: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    value = given.get(name, default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if value is None or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
        return value
    hint = " (YAML reads some words as true or false: put quotes around them)" if isinstance(value, bool) else ""
    raise InputError(f"{name}: {value!r} is not a {kind.__name__}{hint}")


def _positive(given: dict[str, Any], name: str, default: float | None) -> Any:
    value = _typed(given, name, float, default)
    if value is not None and value <= 0:
        raise InputError(f"{name}: {value:g} is not above 0; give a larger number")
    return value


def _lengths(given: dict[str, Any]) -> Lengths:
    least, most = _typed(given, "min_characters", int, 1), _typed(given, "max_characters", int, None)
    if least is None or least < 1:
        raise InputError(f"min_characters: {least} is below 1; give 1 or more")
    if most is not None and most < least:
        raise InputError(f"max_characters: {most} is below min_characters {least}")
    return Lengths(least, most)


def _sources(given: Any, num_proc: int) -> list[Source]:
    if not isinstance(given, list):
        raise InputError("sources: not a list; write one `- input: PATH` for each")
    sources = []
    for number, entry in enumerate(given, 1):
        entry = {"input": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("input"), str):
            raise InputError(f"sources: number {number} has no input; write `- input: PATH`")
        _check_names(f"sources: number {number}", entry, SOURCE_KEYS)
        kinds = dict.fromkeys(SOURCE_KEYS[1:], str) | {"max_documents": int}
        options = {key: _typed(entry, key, kind, None) for key, kind in kinds.items() if entry.get(key) is not None}
        if options.get("max_documents", 1) < 1:
            raise InputError(f"max_documents: {options['max_documents']} is below 1; give 1 or more")
        for key, known in (("kind", KINDS), ("errors", ("strict", "replace"))):
            if options.get(key, known[0]) not in known:
                raise InputError(f"{key}: {options[key]!r} is unknown; choose of {', '.join(known)}")
        source = Source(entry["input"], num_proc=num_proc, **options)
        if entry.get("kind", "auto") == "auto":
            print(f"{source.path}: read as {source.kind} (kind says otherwise)")
        sources.append(source)
    return sources


def _tokenizer(given: Any) -> str | TokenizerToTrain:
    if isinstance(given, str):
        return given
    if not isinstance(given, dict):
        raise InputError(f"tokenizer: {given!r} is neither a name nor a mapping such as {{vocab_size: 32768}}")
    _check_names("tokenizer", given, tuple(TokenizerToTrain.__dataclass_fields__))
    kinds = {"tokenizer_type": str, "lowercase": bool}
    options = {name: _typed(given, name, kinds.get(name, int), None) for name in given if given[name] is not None}
    try:
        return TokenizerToTrain(**options)
    except InputError as error:
        raise InputError(f"tokenizer: {error}") from None


def _block_args(given: dict[str, Any], sources: Sequence[Source]) -> argparse.Namespace:
    """The flags of data_prep.blocks by its own parser, whose checks hold here too."""
    words = ["--input", *(source.path for source in sources), "--output_dir", str(given["output_dir"])]
    words += ["--tokenizer", "made in a stage before"]
    for name in BLOCK_FLAGS:
        value = given.get(name)
        if name == "overwrite":
            words += ["--overwrite"] if _typed(given, name, bool, False) else []
        elif value is not None:
            words += [f"--{name}", str(value)]
    return blocks.parse(words)

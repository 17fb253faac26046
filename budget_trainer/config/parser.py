"""One reader for recipes and command lines: what was written becomes values of dataclass fields.

A recipe is a flat YAML file whose keys are flags. Recipe first, the command line wins, an unknown key is an error. All that is
known of a flag (unit, range, choices, topic of the help) stands in the metadata of its dataclass field, made by `flag`;
conversion, checks, help and `--print_config` read it from there. No torch: a command answers before that is imported.
"""

from __future__ import annotations

import difflib
import json
import math
import sys
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from budget_trainer.budget.clock import parse_deadline, parse_duration
from budget_trainer.core.command import program
from budget_trainer.core.errors import InputError, collected
from budget_trainer.core.io import user_path
from budget_trainer.core.package_data import recipe_path

NULLS = ("null", "~", "None", "")
_TRUE, _FALSE = ("true", "yes", "t", "y", "1"), ("false", "no", "f", "n", "0")
_UNITS = {"bool": "BOOL", "int": "N", "float": "NUMBER", "text": "TEXT", "list": "TEXT..."}
_NUMBERS = {"int": "whole number", "float": "number"}


def _check_json(name: str, text: str) -> None:
    """Refuse what is neither an object in JSON nor a file with one: the library reads it later, and says less."""
    try:
        if isinstance(json.loads(text if text.startswith("{") else Path(text).read_text(encoding="utf-8")), dict):
            return
        reason = "no object"
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
    raise InputError(f"{name}: {text} cannot be read as JSON ({reason}); give a JSON file")


def flag(default: Any, help: str, **known: Any) -> Any:
    """A dataclass field that is a flag of a command line; `known` are attributes of `Flag`, from `unit` on."""
    metadata = {"help": help, **known}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Flag:
    """A flag and all that is known of it.

    `kind` is bool, int, float, text or list. A value has to be one of `choices`, or finite and between the bounds, or a key
    of `special`, which says what that means. TIME without a unit is in `bare`; None refuses it.
    """

    name: str
    kind: str
    optional: bool
    default: Any
    help: str = ""
    unit: str = ""
    topic: str | None = None  # of the help; None: among the others
    choices: tuple[str, ...] = ()
    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None
    special: Mapping[float, str] = field(default_factory=dict)
    bare: str | None = None
    speed: bool = False  # it changes how many tokens a budget buys: a plan belongs to its value
    computes: bool = True  # else it says where and in which company a run happens, not what it computes

    @classmethod
    def of_field(cls, declared: Any, hint: Any, more: Mapping[str, Any]) -> Flag:
        """The flag that a dataclass field is; `more` adds to its metadata."""
        parts = set(get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,))
        optional = type(None) in parts
        parts.discard(type(None))
        origins = {get_origin(part) or part for part in parts}
        kind = next((kind for kind in (bool, int, float, list) if origins == {kind}), None)
        kind = bool if origins == {bool, str} else kind  # as HfArgumentParser takes it
        enums = [part for part in parts if isinstance(part, type) and issubclass(part, Enum)]
        default = declared.default
        if default is MISSING:
            default = declared.default_factory() if declared.default_factory is not MISSING else []
        own = {"choices": tuple(str(entry.value) for entry in enums[0])} if enums else {}
        known: dict[str, Any] = {**own, **declared.metadata, **more}
        name = kind.__name__ if kind else "text"
        known.setdefault("unit", "NAME" if known.get("choices") else "JSON" if dict in origins else _UNITS[name])
        own_keys = {entry.name for entry in fields(cls)}  # TrainingArguments' metadata has words for argparse too
        return cls(declared.name, name, optional, default, **{key: known[key] for key in known.keys() & own_keys})

    def convert(self, words: Sequence[str]) -> Any:
        """The value of what was written behind the flag. Raises InputError where it is none, or out of range."""
        if self.unit.startswith(("DIR", "FILE")) or self.unit.endswith("|DIR"):
            words = [word if word.startswith("{") else user_path(word, self.name) for word in words]  # JSON is no path
        if self.kind == "list":
            if not words:
                raise InputError(f"{self.name}: given without a value; give one or more")
            return list(words)
        if len(words) != 1 and not (self.kind == "bool" and not words):
            what = f"{' '.join(words)!r} is not one value" if words else "given without a value"
            raise InputError(f"{self.name}: {what}; give one")
        text = words[0] if words else "true"
        if self.kind == "bool":
            return _is_true(self.name, text)
        if self.kind in _NUMBERS:
            try:
                value = int(text) if self.kind == "int" else float(text)
            except ValueError:
                raise InputError(f"{self.name}: {text!r} is not a {_NUMBERS[self.kind]}; give one") from None
            self._check_range(value)
            return value
        if self.unit == "FILE|JSON":
            _check_json(self.name, text)
        if self.choices and text not in self.choices:
            raise InputError(f"{self.name}: {text!r} is unknown; choose {_either(self.choices)}")
        if self.unit == "TIME":
            self.seconds(text)
        if self.unit == "MOMENT":
            parse_deadline(text, self.name)
        return text

    def seconds(self, text: str | None) -> float:
        """A duration in seconds; infinite where there is none."""
        return math.inf if text is None else parse_duration(text, self.name, self.bare)

    def _check_range(self, value: float) -> None:
        low = self.min if self.above is None else self.above
        high = self.max if self.below is None else self.below
        above = low is None or (value >= low if self.above is None else value > low)
        below = high is None or (value <= high if self.below is None else value < high)
        if (low is None and high is None) or value in self.special:
            return
        if above and below and -math.inf < value < math.inf:  # a nan is neither above nor below
            return
        words = [] if low is None else [f"from {low:g} on" if self.above is None else f"above {low:g}"]
        words += [] if high is None else [f"up to {high:g}" if self.below is None else f"below {high:g}"]
        also = "".join(f", or {number} for {meaning}" for number, meaning in self.special.items())
        number = _NUMBERS[self.kind]
        raise InputError(f"{self.name}: {value:g} is out of range; give a {number} {' and '.join(words)}{also}")


def _is_true(name: str, text: str) -> bool:
    if text.lower() not in (*_TRUE, *_FALSE):
        raise InputError(f"{name}: {text!r} is not true or false; give one of them")
    return text.lower() in _TRUE


def _either(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


@dataclass(frozen=True)
class _Written:
    """What a recipe or a command line says of a flag: its words, none where it is null, and where they stand."""

    words: tuple[str, ...] | None
    where: str

    @property
    def text(self) -> str:
        """The words as one; `true` for a flag alone."""
        return " ".join(self.words) if self.words else "true"


class Values(types.SimpleNamespace):
    """The values of the flags of one group, which stay as they are."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name}: parsed values stay as they are")


@dataclass(frozen=True)
class Parsed:
    """What was asked for: the groups with their values, the recipe's path, and what was written of each flag."""

    groups: tuple[Any, ...]
    path: str | None
    written: dict[str, _Written]

    @property
    def explicit(self) -> dict[str, str]:
        """The flags that somebody gave a value, as text; a null names nothing."""
        return {name: entry.text for name, entry in self.written.items() if entry.words is not None}


@dataclass(frozen=True)
class FlagParser:
    """The flags of a script, from the dataclasses in `groups`.

    `refused` are flags that are not used here, with what to do instead; `harmless` values of them are let through.
    `renamed` are older names of flags, with today's, and their values in today's words where those changed too.
    """

    script: str
    groups: tuple[type, ...]
    topics: tuple[str, ...]  # of the help, in its order
    refused: Mapping[str, str] = field(default_factory=dict)
    harmless: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, tuple[str, Mapping[bool, str]]] = field(default_factory=dict)
    about: str = ""
    examples: str = ""

    @cached_property
    def flags(self) -> dict[str, Flag]:
        """Every flag by its name, those too that are refused."""
        found: dict[str, Flag] = {}
        for group in self.groups:
            hints, more = get_type_hints(group), getattr(group, "known", {})
            declared: Iterable[Any] = fields(group)
            found |= {f.name: Flag.of_field(f, hints[f.name], more.get(f.name, {})) for f in declared if f.init}
        return found

    def parse(self, argv: Sequence[str] | None = None) -> Parsed:
        """Read `[recipe.yaml] --flag value ...`. Nothing is started or written.

        Raises:
            InputError: the recipe cannot be read; flags are unknown or not used here, or values none of their flags' (all of
                them in one line).
        """
        path, recipe, words = _split_recipe(sys.argv[1:] if argv is None else argv)
        entries: list[tuple[str, tuple[str, ...] | None, str]]
        entries = [(key, _as_words(value), f"recipe {path}") for key, value in recipe.items()]
        entries += [(key, tuple(given), "command line") for key, given in _split(words)]
        return self._parsed(path, entries)

    def _parsed(self, path: str | None, entries: list[tuple[str, tuple[str, ...] | None, str]]) -> Parsed:
        unknown = [(key, where) for key, _, where in entries if self._flag_of(key) is None]
        refusals = [str(self.unknown(unknown))] if unknown else []
        written: dict[str, _Written] = {}
        for key, words, where in entries:
            name, switched = self._flag_of(key) or (key, {})
            words = None if words is not None and len(words) == 1 and words[0] in NULLS else words
            with collected(refusals):
                if switched and words is not None:
                    words = (switched[_is_true(key, words[0] if words else "true")],)
                if name in self.refused and (words is None or words != (self.harmless.get(name),)):
                    raise InputError(f"{name}: not used here ({where}); {self.refused[name]}")
                written.pop(name, None)
                written[name] = _Written(words, where)
        values = {}
        for name in self.flags:
            with collected(refusals):
                values[name] = self._value(name, written)
        if refusals:
            raise InputError("; ".join(refusals))
        # A group that does something when it is made (TrainingArguments looks for devices) stays plain values.
        groups = tuple(
            (Values if hasattr(group, "__post_init__") else group)(
                **{f.name: values[f.name] for f in fields(group) if f.init}
            )
            for group in self.groups
        )
        return Parsed(groups, path, written)

    def knows(self, key: str) -> bool:
        """Whether a key of a recipe is a flag, also one that is not used here, an older name, or `no_` of a switch."""
        return self._flag_of(key) is not None

    def unknown(self, keys: Sequence[tuple[str, str]]) -> InputError:
        """The error for keys that are no flags, each with where it stands."""
        return unknown_keys(keys, self.flags, f"see {program(self.script + '.py')} --help for all flags")

    def _flag_of(self, key: str) -> tuple[str, Mapping[bool, str]] | None:
        """The flag that a key names (itself, today's name of an older one, `x` of `no_x`), and its value by the key's."""
        if key in self.flags:
            return key, {}
        if key in self.renamed:
            return self.renamed[key]
        positive = key.removeprefix("no_")
        known = positive in self.flags and self.flags[positive].kind == "bool"
        return (positive, {True: "false", False: "true"}) if known else None

    def _value(self, name: str, written: Mapping[str, _Written]) -> Any:
        known, entry = self.flags[name], written.get(name)
        if entry is None or (entry.words is None and not known.optional):
            return list(known.default) if isinstance(known.default, list) else known.default
        return None if entry.words is None else known.convert(entry.words)


def unknown_keys(unknown: Sequence[tuple[str, str]], known: Collection[str], otherwise: str) -> InputError:
    """The error for all unknown keys at once, given with where they stand: each with the nearest known name, or `otherwise`."""
    advice = {}
    for key, where in unknown:
        close = difflib.get_close_matches(key, known, n=1)
        advice[key] = (where, f"did you mean {close[0]}?" if close else otherwise)
    if len(advice) == 1:
        ((key, (where, fix)),) = advice.items()
        return InputError(f"{key}: unknown key ({where}); {fix}")
    each = "; ".join(f"{key} ({where}): {fix}" for key, (where, fix) in advice.items())
    return InputError(f"{', '.join(advice)}: unknown keys; {each}")


def _split_recipe(argv: Sequence[str]) -> tuple[str | None, dict[str, Any], list[str]]:
    """The path of the recipe that a command line begins with (None: there is none), its content, the other words."""
    words = list(argv)
    path = recipe_path(words.pop(0), "recipe") if words and not words[0].startswith("-") else None
    return path, read_recipe(Path(path)) if path is not None else {}, words


def _split(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each flag of a command line with the words behind it; `--total-training-time` is `total_training_time`."""
    found: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            found.append((name.replace("-", "_"), [value] if equals else []))
        elif found:
            found[-1][1].append(word)
        else:
            raise InputError(f"command line: {word!r} belongs to no flag; write --flag value")
    return found


def written_flags(words: Sequence[str]) -> dict[str, str]:
    """The flags of a command line as lines of a recipe; the last one counts, also of `--bf16` and `--no_bf16`."""
    found: dict[str, str] = {}
    for name, given in _split(words):
        found.pop(name, None)
        found.pop(opposite(name), None)
        found[name] = " ".join(given) if given else "true"
    return found


def opposite(name: str) -> str:
    """`no_bf16` of `bf16`, and the other way round."""
    return name.removeprefix("no_") if name.startswith("no_") else f"no_{name}"


def read_recipe(path: Path) -> dict[str, Any]:
    """The flat mapping of a YAML recipe, scalars as the text that was written (`1e-3`, `24:00:00` and `no` too)."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise InputError(f"recipe: {path} cannot be read ({error.strerror}); give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"recipe: {path} is not YAML ({' '.join(str(error).split())}); correct it") from None
    if not isinstance(content, dict):
        raise InputError(f"recipe: {path} is not a mapping; write one `flag: value` per line")
    return content


def _as_words(value: Any) -> tuple[str, ...]:
    """The value of a recipe's line as the words of a command line; a mapping is JSON."""
    if isinstance(value, dict):
        return (json.dumps(yaml_typed(value)),)
    return tuple(map(str, value)) if isinstance(value, list) else (str(value),)


def recipe_words(given: Mapping[str, Any]) -> list[str]:
    """A recipe as a command line."""
    return [
        word
        for key, value in given.items()
        for word in (
            [f"--{key}", *_as_words(value)] if isinstance(value, list) else [f"--{key}={_as_words(value)[0]}"]
        )
    ]


def yaml_typed(value: Any) -> Any:
    """Scalars of a mapping as YAML 1.2 reads them."""
    if isinstance(value, dict):
        return {key: yaml_typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [yaml_typed(inner) for inner in value]
    for convert in (json.loads, float):
        try:
            return convert(value)
        except ValueError:
            continue
    return value

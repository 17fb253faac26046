"""Variants of one recipe for `quality_at_budget.py`: what they change, and what that changed."""

import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.baselines.runs import NAMES
from budget_trainer.core.errors import InputError

Changes = dict[str, Any]


def gather(path: str | None, given: Sequence[str]) -> dict[str, Changes]:
    """The variants of a YAML file and of the command line, in order: name to changed flags, values as written.

    Raises InputError: a variant without a name or a change, or the same name twice.
    """
    pairs: list[tuple[str, Any]] = list(_read(Path(path)).items()) if path is not None else []
    pairs += [_split(text) for text in given]
    variants: dict[str, Changes] = {}
    for name, changes in pairs:
        if name in variants:
            raise InputError(f"ablate: {name!r} is given twice; name each variant once")
        if not isinstance(changes, dict) or not changes:
            raise InputError(f'ablate: {name!r} changes nothing; write it as "{name or "name"}: flag=value"')
        variants[name] = changes
    return variants


def _read(path: Path) -> dict[str, Any]:
    from budget_trainer.config.parser import read_recipe  # late: seconds of import that other runs do not need

    return read_recipe(path)


def _split(text: str) -> tuple[str, Changes]:
    """`"name: flag=value flag2=value2"`; a value with spaces in quotes."""
    name, colon, rest = text.partition(":")
    parts = [part.partition("=") for part in shlex.split(rest)]
    if not name.strip() or not colon or not all(key and equals for key, equals, _ in parts):
        raise InputError(f'ablate: {text!r} cannot be read; write it as "name: flag=value flag2=value2"')
    return name.strip(), {key: value for key, _, value in parts}


def check(variants: Mapping[str, Changes], recipes: Sequence[str]) -> None:
    """Refuse variants of several recipes, names that are taken, and flags that do not exist."""
    if not variants:
        return
    if len(recipes) != 1:
        raise InputError(f"recipes: {len(recipes)} given, and variants are of one; give one recipe with --ablate")
    from budget_trainer.config.arguments import KEYS

    for name, changes in variants.items():
        if name in (Path(recipes[0]).stem, *NAMES):
            raise InputError(f"ablate: {name!r} is the name of another run; choose another one")
        for key in changes:
            if key not in KEYS:
                raise InputError(f"ablate: {name!r} changes {key!r}, which is no flag; see train_mlm.py --help")


def write_variant(recipe: Path, changes: Changes, target: Path) -> str:
    """Write the recipe with the changed flags (null unsets one) to `target`; returns its path."""
    from budget_trainer.config.parser import read_recipe

    target.write_text(yaml.safe_dump({**read_recipe(recipe), **changes}, sort_keys=False), encoding="utf-8")
    return str(target)


def add_deltas(rows: Sequence[dict[str, Any]], results: Sequence[dict[str, Any]]) -> None:
    """Give each variant's row `bits_per_byte_to_base` (variant less recipe with the same seed: mean, min, max; above 0
    the variant is worse) and `tokens_per_second_to_base` (the mean ratio). Seeds that only one of them has are left out.
    """
    base = {result["seed"]: result for result in results if result["kind"] == "ours"}
    for row in rows:
        if row["kind"] != "ablation":
            continue
        pairs = [(run, base[run["seed"]]) for run in results if run["name"] == row["name"] and run["seed"] in base]
        if pairs:
            bits = [run["bits_per_byte"] - own["bits_per_byte"] for run, own in pairs]
            speed = [run["tokens_per_second"] / own["tokens_per_second"] for run, own in pairs]
            row["bits_per_byte_to_base"] = {"mean": statistics.mean(bits), "min": min(bits), "max": max(bits)}
            row["tokens_per_second_to_base"] = statistics.mean(speed)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The second table, or nothing where there are no variants."""
    variants = [row for row in rows if "bits_per_byte_to_base" in row]
    if not variants:
        return ""
    lines = [
        "",
        "",
        f"{'variant against the recipe':34} {'n':>2} {'bits/byte':>9} {'min':>7} {'max':>7} {'tokens/s':>9}",
    ]
    for row in sorted(variants, key=lambda row: -row["bits_per_byte_to_base"]["mean"]):
        bits = row["bits_per_byte_to_base"]
        lines.append(
            f"{row['name'][:34]:34} {row['runs']:2} {bits['mean']:+9.3f} {bits['min']:+7.3f} {bits['max']:+7.3f}"
            f" {row['tokens_per_second_to_base']:7.2f} x"
        )
    return "\n".join(lines)

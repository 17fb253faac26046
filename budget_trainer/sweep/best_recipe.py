"""`best_recipe.yaml`: the recipe a sweep began with, its fixed flags and the parameters of its best trial.

The base recipe keeps its comments and its order: values are replaced where they stand. `train_mlm.py` runs the file as it is:
on the sweep's data, for a trial's time, into a folder of its own beside the trials. The command line wins over these three.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from budget_trainer.clock import format_duration
from budget_trainer.migration.recipe_text import WIDTH, scalar
from budget_trainer.recipes import KEYS
from budget_trainer.sweep.ranking import finished, value
from budget_trainer.sweep.records import SweepRecord, TrialRecord
from budget_trainer.sweep.searched import short

RECIPE_COPY = "recipe.yaml"  # in the sweep's folder
# Of one run or of the machine it ran on, not of how to train: left out, also of the base recipe.
OF_THE_RUN = {"data_dir", "output_dir", "seed", "resume_from_checkpoint", "job_time_limit", "run_name", "plan"}
BEST = "best"  # the folder of a run of the recipe, in the sweep's
# Left out of a sweep's fixed flags: they are of its trials. A base recipe may keep them.
OF_THE_TRIALS = OF_THE_RUN | {"total_training_time", "early_exit_time_marker", "use_cpu", "disable_tqdm", "report_to"}
OF_THE_TRIALS |= {"push_to_hub", "hub_model_id", "hub_token", "project", "log_level", "local_rank"}


def best_recipe_text(record: SweepRecord, output_dir: Path) -> str | None:
    """YAML for `recipes.parse_recipe`, or None where no trial has an objective.

    Raises OSError, UnicodeDecodeError or YAMLError where the base recipe cannot be read any more.
    """
    trials = finished(record)
    if not trials:
        return None
    base, stripped = _base(record, output_dir)
    chosen = {_key(name): given for name, given in trials[0].parameters.items()}
    fixed = {_key(name): given for name, given in record.fixed.items() if _key(name) not in OF_THE_TRIALS}
    values = {**fixed, **chosen}
    data_dir = {_key(name): given for name, given in record.fixed.items()}.get("data_dir", _load(base).get("data_dir"))
    run = {
        "data_dir": data_dir,
        "output_dir": str(output_dir / BEST),
        "total_training_time": f"{record.time_per_trial_seconds:g}s",
    }
    run = {name: given for name, given in run.items() if given is not None and name not in values}
    left_out = (OF_THE_RUN | stripped | run.keys()) - values.keys()
    gone = {_key(name) for name in record.fixed if _key(name) not in values} | (_load(base).keys() & left_out)
    head = _header(record, trials[0], sorted(gone - run.keys()), [name for name in values if not _known(name)])
    lines = "".join(f"{name}: {_scalar(given)}\n" for name, given in run.items())
    whole = _merged(base, {name: given for name, given in values.items() if _known(name)}, left_out)
    return f"{head}# Of this run; the command line wins.\n{lines}\n{whole}"


def _base(record: SweepRecord, output_dir: Path) -> tuple[str, set[str]]:
    """The text of the base recipe, and its keys that the trials did not have.

    The sweep keeps a copy without comments of what its trials began with. Where the recipe has been edited since, or is gone,
    that copy counts.
    """
    if record.recipe is None:
        return "", set()
    copy = output_dir / RECIPE_COPY
    kept = copy.read_text(encoding="utf-8") if copy.is_file() else None
    try:
        text = Path(record.recipe).read_text(encoding="utf-8")
        content = _load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        if kept is None:
            raise
        return kept, set()
    if kept is None:
        return text, set()
    theirs = _load(kept)
    same = all(content.get(name) == given for name, given in theirs.items())
    return (text, set(content) - set(theirs)) if same else (kept, set())


def _key(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _known(name: str) -> bool:
    return name in KEYS or name.removeprefix("no_") in KEYS


def _header(record: SweepRecord, best: TrialRecord, left_out: list[str], unknown: list[str]) -> str:
    ends, budget = len(finished(record)), format_duration(record.time_per_trial_seconds)
    lines = [
        f"The best of the sweep {record.name}: trial {best.number} of {len(record.trials)} ({ends} finished), "
        f"{record.objective} {value(best):.5g}, to {record.direction}.",
        f"Found with {budget} per trial; a longer run may want other values.",
        "Base recipe: "
        + (f"{record.recipe}, with its comments." if record.recipe else "none, the defaults of train_mlm.py."),
        "Searched: " + ", ".join(f"{_key(name)} {short(given)}" for name, given in best.parameters.items()) + ".",
        "Run it with: train_mlm.py best_recipe.yaml --total_training_time ...",
    ]
    if left_out:
        lines.append(f"Left out, because they are of a run and not of a recipe: {', '.join(left_out)}.")
    if unknown:
        lines.append(f"No keys of train_mlm.py, so not here: {', '.join(unknown)}.")
    return "".join(_comment(line) for line in lines) + "\n"


def _comment(text: str) -> str:
    """Comment lines, out of which nothing can get: one text line each, and printable."""
    flat = "".join(character if character.isprintable() else " " for character in text)
    wrapped = textwrap.wrap(" ".join(flat.split()), WIDTH, initial_indent="# ", subsequent_indent="#   ")
    return "\n".join(wrapped) + "\n"


def _load(text: str) -> dict[str, Any]:
    loaded = yaml.load(text, Loader=yaml.BaseLoader) if text.strip() else None
    return loaded if isinstance(loaded, dict) else {}


def _merged(base: str, values: Mapping[str, Any], left_out: set[str]) -> str:
    """`base` with `values` put in where its keys stand or at its end, and without `left_out`."""
    expected = _load(base)
    for name, given in values.items():
        _drop_opposite(expected, name)
        expected[name] = _read_back(given)
    expected = {name: given for name, given in expected.items() if name not in left_out}
    text = _edited(base, values, left_out)
    try:
        right = _load(text) == expected
    except yaml.YAMLError:
        right = False
    if right:
        return text
    return "".join(
        f"{name}: {_scalar(given)}\n" for name, given in expected.items()
    )  # a base that is not line by line


def _drop_opposite(mapping: dict[str, Any], name: str) -> None:
    mapping.pop(_opposite(name), None)


def _opposite(name: str) -> str:
    """`no_bf16` of `bf16`, and the other way round: the same flag."""
    return name.removeprefix("no_") if name not in KEYS else f"no_{name}"


def _scalar(given: Any) -> str:
    if given is None:
        return "null"
    if isinstance(given, str) and given.startswith("{"):  # a mapping among choices is one as JSON
        with suppress(ValueError):
            given = json.loads(given)
    return json.dumps(given, ensure_ascii=False) if isinstance(given, dict | list | tuple) else scalar(given)


def _read_back(given: Any) -> Any:
    return yaml.load(_scalar(given), Loader=yaml.BaseLoader)


def _edited(base: str, values: Mapping[str, Any], left_out: set[str]) -> str:
    """Line by line: a key's lines are replaced or dropped, its comment stays behind the new value."""
    lines = base.splitlines()
    root = yaml.compose(base, Loader=yaml.BaseLoader) if base.strip() else None
    places = {} if root is None else {key.value: (key.start_mark.line, _last_line(node)) for key, node in root.value}
    for name, (first, last) in sorted(places.items(), key=lambda place: -place[1][0]):
        if name in values:
            lines[first : last + 1] = [_replaced(name, values[name], lines[first : last + 1])]
        elif name in left_out or any(_opposite(other) == name for other in values):
            del lines[first : last + 1]
    new = [name for name in values if name not in places]
    if new:
        lines += ["", "# From the sweep."] if lines else []
        lines += [f"{name}: {_scalar(values[name])}" for name in new]
    return "\n".join(lines) + "\n"


def _last_line(node: Any) -> int:
    """Of a value: a block's own mark is behind the comments that follow it."""
    if isinstance(node, yaml.MappingNode | yaml.SequenceNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _last_line(last[1] if isinstance(last, tuple) else last)
    block_text = isinstance(node, yaml.ScalarNode) and node.style in ("|", ">")
    return int(node.end_mark.line - (1 if block_text else 0))


def _replaced(name: str, given: Any, lines: list[str]) -> str:
    new = f"{name}: {_scalar(given)}"
    if len(lines) > 1:
        return f"{new}  # the sweep's"
    code, _, remark = lines[0].partition(" #")
    old = " ".join(code.partition(":")[2].split())
    if _load(lines[0]).get(name) == _read_back(given):
        return lines[0]
    said = f"the sweep's; was {old}" if old else "the sweep's"
    return f"{new}  # {said}" + (f" ({remark.strip()})" if remark.strip() else "")

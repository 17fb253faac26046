"""`best_recipe.yaml`: the recipe a sweep began with, its fixed flags and the parameters of its best trial.

The base recipe keeps its comments and its order: values are replaced where they stand. `train_mlm.py` runs the file as it is:
on the sweep's data, for a trial's time, into a folder of its own beside the trials. The command line wins over these three.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import yaml

from budget_trainer.budget.clock import format_duration
from budget_trainer.config.arguments import KEYS
from budget_trainer.config.edit import WIDTH, edited, load, scalar
from budget_trainer.sweep.results import SweepRecord, TrialRecord, finished, short, value

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
    data_dir = {_key(name): given for name, given in record.fixed.items()}.get("data_dir", load(base).get("data_dir"))
    run = {
        "data_dir": data_dir,
        "output_dir": str(output_dir / BEST),
        "total_training_time": f"{record.time_per_trial_seconds:g}s",
    }
    run = {name: given for name, given in run.items() if given is not None and name not in values}
    left_out = (OF_THE_RUN | stripped | run.keys()) - values.keys()
    gone = {_key(name) for name in record.fixed if _key(name) not in values} | (load(base).keys() & left_out)
    head = _header(record, trials[0], sorted(gone - run.keys()), [name for name in values if not _known(name)])
    lines = "".join(f"{name}: {scalar(given)}\n" for name, given in run.items())
    known = {name: given for name, given in values.items() if _known(name)}
    head += f"# Of this run; the command line wins.\n{lines}\n"
    return edited(base, known, left_out, whose="the sweep", head=head)


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
        text = Path(record.recipe).read_text(encoding="utf-8-sig")
        content = load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        if kept is None:
            raise
        return kept, set()
    if kept is None:
        return text, set()
    theirs = load(kept)
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

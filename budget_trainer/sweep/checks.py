"""What is tried before anything starts: every value by train_mlm.py's own parser, the data, the profile, the folder."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from budget_trainer.config.arguments import PARSER
from budget_trainer.config.parser import read_recipe, recipe_words
from budget_trainer.config.recipe import parse_recipe
from budget_trainer.core.errors import InputError
from budget_trainer.migrate.flags import FLAGS
from budget_trainer.sweep.spec import SweepSpec, combinations, grid_size, pruning_words, said_by_sweep
from budget_trainer.training import run_folder

_PARSED_POINTS = 300  # of a grid that are all parsed (about 2 ms each); of larger ones each value once
FOREIGN = (run_folder.RUN, "suite.json", run_folder.FINAL)  # of another kind of folder


def check_words(spec: SweepSpec, on_cpu: bool = False) -> Path:
    """Refuse (InputError) any trial whose flags train_mlm.py would refuse; returns the data folder of all trials.

    A GPU is not touched for it: without `on_cpu` precision and device do not count here.
    """
    recipe = base_recipe(spec)
    _check_names([*spec.space, *spec.fixed], "sweep file")
    _check_names([*recipe], f"recipe {spec.recipe}")
    base = recipe_words(recipe)
    own = [f"--output_dir={spec.output_dir}", f"--total_training_time={spec.trial_seconds}s", "--use_cpu=true"]
    own += ["--push_to_hub=false", *([] if on_cpu else ["--fp16=false", "--tf32=false"])]
    own += pruning_words(spec.steps)
    recipes = [parse_recipe([*base, *spec.words(parameters), *own]) for parameters in _probes(spec)]
    recipes[
        0
    ].training_arguments()  # TrainingArguments checks what it is given: of one trial, since it looks for devices each time
    data_dirs = {recipe.data_dir for recipe in recipes}
    if len(data_dirs) > 1:
        raise InputError("data_dir: losses on different data do not compare; put one data_dir under fixed")
    return data_dirs.pop()


def _check_names(names: list[str], where: str) -> None:
    """Refuse the flags that train_mlm.py does not know, each with the nearest name, or what has its place here."""
    unknown = [(name, where) for name in names if not PARSER.knows(name)]
    for name, _ in unknown:
        if name in FLAGS:
            flag = FLAGS[name]
            fix = f"write {flag.key}" if flag.key else f"take it out: {flag.text}"
            raise InputError(f"{name}: a flag of the original ({where}); {fix}")
    if unknown:
        raise PARSER.unknown(unknown)


def _probes(spec: SweepSpec) -> Iterator[dict[str, Any]]:
    """Every point of a grid of up to _PARSED_POINTS; else each value, or both ends of a range, beside the others' first."""
    size = grid_size(spec.space)
    if size is not None and size <= _PARSED_POINTS:
        yield from combinations(spec.space)
        return
    probes = {name: dimension.probes() for name, dimension in spec.space.items()}
    first = {name: values[0] for name, values in probes.items()}
    yield first
    for name, values in probes.items():
        for value in itertools.islice(values, 1, None):
            yield {**first, name: value}


def check_glue(spec: SweepSpec) -> None:
    """Refuse flags that finetune_glue.py does not know, and data that are not there, before hours of pre-training."""
    from budget_trainer.glue.arguments import check_installed, parse_request
    from budget_trainer.glue.data import check_data, load_task

    check_installed()
    request = parse_request([*spec.objective.words("final", str(spec.output_dir)), "--use_cpu=true"])
    if request.is_suite:
        raise InputError("objective: a trial's score is one task with one seed; leave grid, seeds and others out")
    data = load_task(request.tasks[0], request.glue_dir, request.glue.dataset_name)
    check_data(data, do_train=True, do_eval=True, do_predict=False)


def check_folder(spec: SweepSpec) -> None:
    """Refuse a folder that cannot be written, or that is a run's or a suite's. Writes nothing."""
    run_folder.check_writable(spec.output_dir)
    for name in FOREIGN:
        if (spec.output_dir / name).exists():
            raise InputError(
                f"output_dir: {spec.output_dir} holds something else ({name}); give another folder for this sweep"
            )


def base_recipe(spec: SweepSpec) -> dict[str, Any]:
    """The recipe of all trials, without what the sweep says itself."""
    content = {} if spec.recipe is None else read_recipe(spec.recipe)
    return {name: value for name, value in content.items() if said_by_sweep(name, spec.steps) is None}


def read_profile(path: Path) -> tuple[bool, int]:
    """Whether a launch configuration is for a CPU, and how many processes it starts. Raises InputError."""
    try:
        profile = yaml.safe_load(path.read_text(encoding="utf-8"))
        use_cpu, processes = bool(profile.get("use_cpu", False)), int(profile.get("num_processes", 1))
        machines = int(profile.get("num_machines", 1))
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"accelerate_config: {path} cannot be read ({' '.join(str(error).split())[:200]}); give a profile as in "
            "accelerate_configs/"
        ) from None
    if machines > 1:
        raise InputError(
            f"accelerate_config: {path} is for {machines} machines, and a trial runs on one; give one for one machine and "
            "start sweep.py on each with the same storage"
        )
    return use_cpu, max(1, processes)

"""What a sweep is asked for: both forms of file, printed commands, and one line for what cannot be."""

import re
import shlex

import optuna
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from budget_trainer import sweep
from budget_trainer.config.recipe import parse_recipe
from budget_trainer.core.errors import InputError
from budget_trainer.sweep.command import parse_request
from budget_trainer.sweep.run import _make_slots
from budget_trainer.sweep.study import SweepStudy
from budget_trainer.sweep.trials import TrialFolder
from tests.conftest import ROOT, TINY

# The example of the original's README.
README = """
hyperparameters:
  param1: [val1, val2]
  param2: [val1, val2]

default_parameters:
  param3: 0.0
"""
ORIGINAL = """
hyperparameters: {train_batch_size: [4096, 8192], lr: [1e-3, 2e-3]}
default_parameters:
  {output_dir: out, fp16: false, do_validation: true, use_early_stopping: true, dataset_path: shards}
"""
OURS = {
    "search": "random",
    "fixed": {"data_dir": "data"},
    "parameters": {
        "learning_rate": {"low": "1e-4", "high": "1e-2", "log": True},
        "per_device_train_batch_size": {"low": 8, "high": 32, "step": 8},
        "optimizer_type": ["adamw", "muon"],
        "curve": {"choices": ["linear", "cosine"]},
    },
    "time_per_trial": "45s",
    "total_time": "10m",
    "trials": 12,
}


@pytest.fixture
def answer(tmp_path, capsys):
    """(exit code, lines of stdout, stderr) of sweep.py with a file of this content."""

    def run(content, *argv):
        path = tmp_path / "sweep.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        output = [] if "--output_dir" in argv or isinstance(content, str) else ["--output_dir", str(tmp_path / "out")]
        code = sweep.main(["--param_file", str(path), *map(str, argv), *output])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return run


def spec_of(tmp_path, content, *argv):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return parse_request([str(path), "--output_dir", str(tmp_path / "out"), *argv]).spec()


def study_of(spec):
    return SweepStudy(spec, optuna.storages.InMemoryStorage(), {})


# ---- the original's form ----


def test_the_originals_example_gives_its_four_commands(answer):
    code, lines, error = answer(README, "--dry_run")
    head = "accelerate launch train_mlm.py"
    points = [("val1", "val1"), ("val1", "val2"), ("val2", "val1"), ("val2", "val2")]
    assert code == 0 and lines == [f"{head} --param1={one} --param2={two} --param3=0.0" for one, two in points]
    assert error.startswith("note: param1: unknown") and error.count("\n") == 1
    code, lines, _ = answer(README, "--dry_run", "--init_cmd", "deepspeed train_mlm.py", "--job_name", "mine")
    assert lines[3] == "deepspeed train_mlm.py --param1=val2 --param2=val2 --param3=0.0 --run_name=mine"
    code, lines, error = answer(README)  # to be run, not printed
    assert code == 2 and error.startswith("error: param1: unknown to the original's run_pretraining.py (sweep file)")


def test_the_originals_flags_become_ours_in_its_order(answer):
    code, lines, error = answer(ORIGINAL, "--dry_run", "--data_dir", "blocks")
    assert code == 0, error
    found = []
    for line in lines:
        words = shlex.split(line)
        assert words[:3] == ["accelerate", "launch", "train_mlm.py"] and "--fp16=false" in words  # B27
        recipe = parse_recipe([*words[3:], "--use_cpu=true"])
        assert (recipe.watch.validation_epochs, str(recipe.data_dir), recipe.total_seconds) == (10, "blocks", 86400)
        found.append((recipe.training.gradient_accumulation_steps, recipe.training.learning_rate))
    assert found == [(128, 1e-3), (128, 2e-3), (256, 1e-3), (256, 2e-3)]


def test_the_originals_form_with_our_flags(answer):
    text = "hyperparameters:\n  learning_rate: [1e-3, 2e-3]\ndefault_parameters:\n  curve: wsd\n"
    argv = ["--time_per_trial", "1h", "--output_dir", "out", "--data_dir", "d", "--dry_run"]
    _, lines, _ = answer(text, *argv)
    own = "--learning_rate=0.002 --curve=wsd --data_dir=d --total_training_time=1h --output_dir=out/trial-0001"
    assert lines[1] == f"accelerate launch train_mlm.py {own}"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--search_type", "tpe"], "search: 'tpe' is not one of the original's"),
        (["--search_type", "nonsense", "--dry_run"], "search: 'nonsense' is not one of the original's"),
        (["--init_cmd", "deepspeed train_mlm.py"], "init_cmd: trials are started by accelerate launch"),
        (["--dry_run", "--init_cmd", "a run_pretraining.py"], "init_cmd: 'a run_pretraining.py' starts"),
        (
            ["--dry_run", "--data_dir", "blocks", "--accelerate_config", ""],
            "command line: argument --accelerate_config: an empty",
        ),
    ],
)
def test_what_the_originals_form_cannot_have(answer, argv, message):
    code, _, error = answer(ORIGINAL, *argv)
    assert code == 2 and error.startswith(f"error: {message}") and error.count("\n") == 1


# ---- ours ----


def test_values_are_what_was_written(tmp_path):
    space = {"rate": {"low": "1e-4", "high": "1e-2", "log": "true"}, "list": ["1e-4", "24h", "true", "8"]}
    space |= {"n": {"low": "8", "high": "32", "step": "8"}, "x": {"low": "0.1", "high": "0.4", "step": "0.1"}}
    spec = spec_of(tmp_path, {**OURS, "parameters": {**space, "whole": {"low": "0", "high": "2000000000"}}})
    assert spec.parameters == {
        "rate": FloatDistribution(1e-4, 1e-2, log=True),
        "list": CategoricalDistribution((1e-4, "24h", True, 8)),
        "n": IntDistribution(8, 32, step=8),
        "x": FloatDistribution(0.1, 0.4, step=0.1),
        "whole": IntDistribution(0, 2_000_000_000),
    }
    assert spec.grid_size is None and spec.limit == 12 and not spec.exhaustive
    del space["rate"]
    spec = spec_of(tmp_path, {**OURS, "search": "grid", "trials": None, "parameters": space})
    points = list(spec.combinations())
    assert len(points) == spec.grid_size == spec.limit == 64
    assert [point["x"] for point in points[:4]] == [0.1, 0.2, 0.3, 0.4]
    assert points[-1] == {"list": 8, "n": 32, "x": 0.4}


@pytest.mark.parametrize(("search", "known"), [("random", 12), ("tpe", 4)])
def test_a_dry_run_prints_what_the_sweep_will_try(answer, tmp_path, search, known):
    """Of tpe what depends on no result."""
    content = {**OURS, "search": search}
    code, lines, error = answer(content, "--dry_run")
    assert code == 0 and len(lines) == 12 == len(set(lines))
    assert (f"the first {known} as shown" in error) == (known < 12)
    assert lines != answer(content, "--dry_run", "--seed", 1)[1]
    study = study_of(spec_of(tmp_path, content))
    for number, line in enumerate(lines[:known]):
        trial = study.propose()
        words = study.spec.words(trial.params, number)
        assert shlex.split(line)[3:] == words and "--validate_every=0.25" in words
        study.conclude(trial, 1.0, TrialState.COMPLETE)


def test_a_grid_has_every_point_once_whoever_asks(tmp_path):
    """Also behind a restart: each proposal comes from a new sampler."""
    changes = {"search": "grid", "parameters": {"curve": ["linear", "cosine"], "seed": [1, 2, 3]}, "trials": 100}
    study = study_of(spec_of(tmp_path, {**OURS, **changes}))
    assert study.spec.limit == 6
    trials = [study.propose() for _ in range(3)]
    study.conclude(trials[1], None, TrialState.FAIL)
    trials += [study.propose() for _ in range(3)]
    assert len({tuple(trial.params.values()) for trial in trials}) == 6


FEW, WIDE = {"seed": [1, 2, 3]}, {"seed": {"low": 0, "high": 2_000_000_000}}
HALVING = {"search": "successive_halving"}


@pytest.mark.parametrize(
    ("changes", "sampler", "pruner", "steps"),
    [
        ({}, "RandomSampler", "MedianPruner", (250, 500)),
        ({"search": "tpe"}, "TPESampler", "MedianPruner", (250, 500)),
        ({"prune_at": []}, "RandomSampler", "NopPruner", ()),
        (HALVING, "RandomSampler", "SuccessiveHalvingPruner", (125, 250, 500)),
        ({**HALVING, "parameters": FEW}, "_MiddleFirst", "SuccessiveHalvingPruner", (125, 250, 500)),
        ({**HALVING, "parameters": WIDE}, "RandomSampler", "SuccessiveHalvingPruner", (125, 250, 500)),
        ({"search": "hyperband"}, "RandomSampler", "HyperbandPruner", (111, 333)),
        ({"search": "grid", "parameters": FEW}, "GridSampler", "NopPruner", ()),
    ],
)
def test_searches_are_optunas(tmp_path, changes, sampler, pruner, steps):
    study = study_of(spec_of(tmp_path, {**OURS, **changes}))
    study.propose()
    assert (type(study.sampler).__name__, type(study.pruner).__name__, study.spec.prune_at) == (sampler, pruner, steps)
    assert changes.get("search") != "hyperband" or study.spec.reduction_factor == 3


def test_a_halving_search_begins_in_the_middle_and_tries_all_of_the_grid(tmp_path):
    lists = {"learning_rate": ["5e-2", "5e-4", "1e-3", "8e-3", "3e-3"], "curve": ["linear", "cosine"]}
    changes = {**OURS, "search": "hyperband", "parameters": lists}
    study = study_of(spec_of(tmp_path, changes))
    tried = [study.propose().params for _ in range(10)]
    assert tried[0] == {"learning_rate": 3e-3, "curve": "linear"}
    assert len({tuple(sorted(point.items())) for point in tried}) == 10
    # How many trials there may be changes nothing of it.
    few = study_of(spec_of(tmp_path, {**changes, "trials": 2}))
    assert [few.propose().params for _ in range(2)] == tried[:2] and few.spec.limit == 2


@pytest.mark.parametrize(("objective", "value"), [("bits_per_byte", 1.5), ("loss", 2.0)])
def test_evaluations_are_read_from_progress(tmp_path, objective, value):
    folder = TrialFolder(spec_of(tmp_path, {**OURS, "objective": objective}), 0)
    folder.path.mkdir(parents=True)
    line = '{"share": 0.26, "evaluation": {"loss": 2.0, "bits_per_byte": 1.5}}'
    (folder.path / "progress.jsonl").write_text(f'{line}\n{{"share": 0.3, "loss": 1}}\n{{"sha')
    assert folder.evaluations() == [(0.26, value)]


def searched(**given):
    return {"parameters": given}


BAD = [
    ({"search": "grd"}, "search: 'grd' is unknown; choose grid, random, tpe, successive_halving or hyperband"),
    ({"trails": 3}, "trails: unknown key (sweep file"),
    (searched(), "parameters: nothing to search"),
    (searched(lerning_rate=[1, 2]), "lerning_rate: unknown key (sweep file); did you mean learning_rate?"),
    (searched(lr=[1, 2]), "lr: a flag of the original (sweep file); write learning_rate"),
    (searched(fp16_backend=["ds", "apex"]), "fp16_backend: a flag of the original (sweep file); take it out: "),
    (searched(curve={"choices": []}), "curve: an empty list leaves nothing to try"),
    (searched(learning_rate=["1e-3", "0.001"]), "learning_rate: 0.001 stands twice"),
    (searched(learning_rate=["fast", 1]), "learning_rate: 'fast' is not a number; give one"),
    (searched(learning_rate=["1e-3", "nan"]), "learning_rate: 'nan' is not one value"),
    (searched(learning_rate=3), "learning_rate: '3' is one value; put it under fixed"),
    (searched(seed={"low": 1}), "seed: high is missing"),
    (searched(seed={"low": "a", "high": 2}), "seed: low 'a' is not a number"),
    (searched(seed={"low": 1, "high": 2, "log": 1}), "seed: log '1' is not true or false"),
    (
        searched(learning_rate={"low": 1, "high": 0.1}),
        "learning_rate: `low <= high` must hold, but got (low=1, high=0.1)",
    ),
    (searched(seed={"low": 0, "high": 1, "log": True}), "seed: `low >= 1` must hold for `log=True`"),
    (searched(seed={"low": 0, "hihg": 1}), "hihg: unknown key (parameters.seed); did you mean high?"),
    (
        searched(seed={"low": 1, "high": 8, "step": 3}),
        "seed: high 8 is not low plus a multiple of step; write high: 7",
    ),
    (searched(warmup_proportion={"low": 0.1, "high": 1.5}), "warmup_proportion: 1.5"),
    (searched(curve=["linear", "cosin"]), "curve: 'cosin' is unknown"),
    (searched(output_dir=["a", "b"]), "output_dir: not a flag of trials; each trial has a folder"),
    (searched(data_dir=["a", "b"]), "data_dir: both under fixed and under parameters"),
    ({"search": "grid", "parameters": WIDE}, "search: a grid of 2,000,000,001 points, more than 10,000"),
    ({"search": "grid"}, "learning_rate: a range without step, and a grid needs points"),
    ({"fixed": {"data_dir": "d", "output_dir": "o"}}, "output_dir: not a flag of trials"),
    ({"fixed": {"data_dir": "d", "curv": "wsd"}}, "curv: unknown key (sweep file); did you mean curve?"),
    ({"fixed": {}}, "data_dir: missing"),
    ({"total_time": "40s"}, "total_time: 40s is smaller than one trial (time_per_trial 45s"),
    ({"total_time": 600}, "total_time: '600' has no unit"),
    ({"time_per_trial": None}, "time_per_trial: missing"),
    ({"trials": None, "total_time": None}, "trials: missing, and total_time too"),
    ({"trials": 0}, "trials: 0 is out of range; give a whole number from 1 on"),
    ({"parallel_trials": "many"}, "parallel_trials: 'many' is not a whole number; give one"),
    ({"prune_at": [0.5, 0.25]}, "prune_at: ['0.5', '0.25'] are not rising shares below 1"),
    ({"prune_at": [0.25, 0.501]}, "prune_at: ['0.25', '0.501'] would need a validation every 0.1 % of a trial"),
    ({"search": "hyperband", "prune_at": [0.2, 0.5]}, "prune_at: ['0.2', '0.5'] do not grow by one whole"),
    ({"objective": "accuracy"}, "objective: 'accuracy' is unknown; write bits_per_byte, loss, or {glue: CoLA}"),
    ({"objective": {"glue": "Cola2"}}, "task_name: 'Cola2'"),
    ({"objective": {"glue": "CoLA,RTE", "checkpoints": "a"}}, "objective: checkpoints is not a flag that a trial's"),
    ({"objective": {"glue": "CoLA,RTE", "glue_dir": []}}, "objective: glue_dir is not a flag that a trial's"),
    ({"objective": {"glue": "CoLA,RTE", "glue_dir": ["/nowhere"]}}, "glue_dir: /nowhere is not a folder"),
    ({"objective": {"glue": "CoLA", "grid": "/nowhere.yaml"}}, "recipe: /nowhere.yaml cannot be read"),
    ({"accelerate_config": "none.yaml"}, "accelerate_config: none.yaml is not there"),
    ({"recipe": "none.yaml"}, "recipe: none.yaml cannot be read"),
    ({"script": "other.py"}, "script: 'other.py' cannot be searched"),
    ({"storage": "sqlite:////none/study.db"}, "storage: the folder /none is not there"),
    ({"storage": "sqlite://"}, "storage: 'sqlite://' names no file; write sqlite:///PATH"),
    (
        {"storage": "sqlite+pysqlite:///a%20b.db"},
        "storage: 'sqlite+pysqlite:///a%20b.db' names no file; write sqlite:///",
    ),
    ({"storage": "file.db"}, "storage: file.db cannot be used (Could not parse"),
    ({"storage": "oracel://host/db"}, "storage: oracel://host/db cannot be used (Can't load plugin"),
    ({"storage": "postgresql://me:secret@host/db"}, "storage: postgresql://me:***@host/db cannot be used (No module"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_input_is_one_line_before_anything_is_written(answer, tmp_path, data_dir, change, message):
    content = {**OURS, "fixed": {"data_dir": str(data_dir)}, **change}
    code, lines, error = answer({key: value for key, value in content.items() if value is not None})
    assert code == 2 and error.startswith(f"error: {message}"), error
    assert error.count("\n") == 1 and not lines and not (tmp_path / "out").exists()


def test_a_file_that_is_none(capsys, tmp_path):
    for argv, message in (
        ([], "param_file: missing"),
        (["a", "--param_file", "b"], "param_file: given twice"),
        ([str(tmp_path / "none")], "param_file: "),
        (["--tirals", "3"], "command line: unrecognized arguments: --tirals"),
    ):
        assert sweep.main(argv) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_another_kind_of_folder_is_refused(answer, tmp_path, data_dir):
    (tmp_path / "run.json").write_text("{}")
    code, _, error = answer({**OURS, "fixed": {"data_dir": str(data_dir)}}, "--output_dir", tmp_path)
    assert code == 2 and error.startswith("error: output_dir: ") and "holds something else (run.json)" in error
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "sweep.yaml"}


def test_a_recipe_keeps_what_the_sweep_does_not_say(tmp_path):
    of_the_sweep = {"validation_epochs": 3, "total_training_time": "1h", "plan": "recipe.plan.json"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**TINY, **of_the_sweep}))
    spec = spec_of(tmp_path, {**OURS, "recipe": str(tmp_path / "recipe.yaml")})
    assert spec.base_recipe() == {name: str(value) for name, value in TINY.items()}


@pytest.mark.parametrize("name", ["total_training_time", "output_dir"])
def test_what_the_sweep_says_is_not_searched_in_the_originals_form(answer, name):
    text = f"hyperparameters:\n  {name}: [1, 2]\n  lr: [1e-3]\ndefault_parameters:\n  fp16: false\n"
    code, _, error = answer(text, "--time_per_trial", "1h", "--output_dir", "out", "--data_dir", "d", "--dry_run")
    assert code == 2 and re.match(rf"error: ({name}|hyperparameters): ", error) and error.count("\n") == 1


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "sweeps").glob("*.yaml")), ids=lambda path: path.name)
def test_sweep_files_of_the_repository(path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert sweep.main([str(path), "--output_dir", "out/sweep", "--dry_run"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 12


def test_trials_at_the_same_time_have_devices_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,3")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    spec = spec_of(tmp_path, OURS)
    assert _make_slots(spec, False, 1) == ["0", "1", "3"] and _make_slots(spec, False, 2) == ["0,1"]
    assert _make_slots(spec, True, 2) == [None]
    assert _make_slots(spec_of(tmp_path, OURS, "--parallel_trials", "5"), False, 1) == ["0", "1", "3", "0", "1"]
    with pytest.raises(InputError, match="starts 4 processes, and there are 3 GPUs"):
        _make_slots(spec, False, 4)

"""benchmarks/glue_gain.py: the comparison by hand, and a real one of a tiny model."""

import json

import psutil
import pytest

from benchmarks import glue_gain
from budget_trainer.core.errors import RunError
from tests.conftest import ROOT, words

TRAINED, RANDOM = glue_gain.MODELS


def points(trained, random):
    """Two tasks, three seeds; the second task is the first one raised by ten."""
    return {
        name: {"A": dict(enumerate(values)), "B": {seed: value + 10 for seed, value in enumerate(values)}}
        for name, values in ((TRAINED, trained), (RANDOM, random))
    }


def test_the_means_are_taken_seed_by_seed_and_the_gain_is_that_of_the_medians():
    verdict = glue_gain.judge(points([20, 30, 26], [10, 12, 11]), ["A", "B"])
    assert verdict == {"means": {TRAINED: [25, 35, 31], RANDOM: [15, 17, 16]}, "gain": 15, "spread": 10, "holds": True}


@pytest.mark.parametrize(
    ("trained", "random"),
    [
        ([20, 24, 22], [10, 28, 18]),  # 4 above, and one model's seeds are 18 apart
        ([10, 10, 10], [20, 20, 20]),
        ([22, 20, 21], [20, 18, 19]),  # exactly the spread
    ],
)
def test_what_is_not_more_than_the_spread_does_not_hold(trained, random):
    verdict = glue_gain.judge(points(trained, random), ["A", "B"])
    assert not verdict["holds"] and "NO" in glue_gain.table(points(trained, random), verdict, ["A", "B"])


def test_only_seeds_that_every_judged_task_has_finished_count():
    found = points([20, 30, 26], [10, 12, 11])
    del found[TRAINED]["B"][1]
    assert glue_gain.judge(found, ["A", "B"])["means"][TRAINED] == [25, 31]
    found[TRAINED]["B"].clear()
    with pytest.raises(RunError, match="pre-trained: fewer than two seeds have finished A, B; see"):
        glue_gain.judge(found, ["A", "B"])


@pytest.fixture
def gain(tiny_model, glue_dir, tmp_path, capfd):
    """glue_gain.main with changed flags: its exit code and its one line of error."""
    grid = tmp_path / "grid.yaml"
    flags = "{max_seq_length: 32, num_train_epochs: 1, per_device_train_batch_size: 8, learning_rate: 1e-3}"
    grid.write_text(f"seeds: [1, 2]\nflags: {flags}\n")
    given = {"model_name_or_path": tiny_model, "glue_dir": glue_dir, "grid": grid, "tasks": "cola", "judged": "CoLA"}
    given |= {"seed": 1, "output_dir": tmp_path / "out"}

    def call(**changes):
        try:
            code = glue_gain.main(words({**given, **changes}))
        except SystemExit as end:
            code = end.code
        errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        return code, errors[0] if errors else None

    return call


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"judged": "RTE"}, "judged: RTE is not among tasks CoLA; add it there"),
        ({"tasks": "colla"}, "did you mean CoLA?"),
        ({"tasks": "QNLI", "judged": "QNLI"}, "QNLI"),
        (
            {"grid": ROOT / "recipes" / "glue" / "quick.yaml"},
            "has one seed, which has no spread; give seeds: [1, 2, 3]",
        ),
        ({"glue_dir": "/nowhere"}, "glue_dir"),
        ({"model_name_or_path": ROOT / "recipes"}, "recipes has no config.json"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(gain, tmp_path, changes, expected):
    code, error = gain(**changes)
    assert code == 2 and expected in error and not (tmp_path / "out").exists(), error


@pytest.mark.slow
def test_a_failing_suite_ends_the_other_one(gain, tmp_path):
    (tmp_path / "grid.yaml").write_text("seeds: [1, 2]\nflags: {max_seq_length: 32, num_train_epochs: 1000}\n")
    (tmp_path / "out" / "random_weights").mkdir(parents=True)
    (tmp_path / "out" / "random_weights" / "glue_runs.json").write_text("no suite")
    code, error = gain()
    assert code == 2 and error.startswith("error: random weights: ") and "all of it in" in error, error
    lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in lines if str(tmp_path) in line]


@pytest.mark.slow
def test_a_real_comparison_and_the_same_again_without_training(gain, tiny_model, tmp_path):
    def run():
        code, error = gain()
        found = json.loads((tmp_path / "out" / "glue_gain.json").read_text())
        assert error is None and code == (0 if found["holds"] else 1)
        return found["points"], {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}

    first, files = run()
    assert {name: set(tasks["CoLA"]) for name, tasks in first.items()} == {TRAINED: {"1", "2"}, RANDOM: {"1", "2"}}
    assert len(files) == 4
    weights = [(folder / "model.safetensors").read_bytes() for folder in (tiny_model, tmp_path / "out" / "weights")]
    assert len(weights[0]) == len(weights[1]) and weights[0] != weights[1]
    assert run() == (first, files)
    code, error = gain(seed=2)  # other weights do not pass for these
    assert code == 2 and error.startswith("error: random weights: "), error

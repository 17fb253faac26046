"""benchmarks/glue_gain.py: the comparison by hand, and a real one of a tiny model."""

import json

import pytest

from benchmarks import glue_gain
from budget_trainer.errors import RunError

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
        ([20, 20, 20], [20, 20, 20]),
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
    with pytest.raises(RunError, match="pre-trained: no seed has finished every one of A, B"):
        glue_gain.judge(found, ["A", "B"])


def test_bad_input(tmp_path, capsys):
    for words, expected in (
        (["--judged", "RTE"], "error: judged: RTE is not among tasks STS-B,SST-2,MRPC,CoLA; add it there"),
        ([], f"error: model_name_or_path: {tmp_path} has no config.json; give a checkpoint's folder"),
    ):
        assert glue_gain.main(["--model_name_or_path", str(tmp_path), "--glue_dir", str(tmp_path), *words]) == 2
        assert capsys.readouterr().err.strip() == expected


def test_a_real_comparison_and_the_same_again_without_training(tiny_model, glue_dir, tmp_path, capfd):
    grid = tmp_path / "grid.yaml"
    flags = "{max_seq_length: 32, num_train_epochs: 1, per_device_train_batch_size: 8, learning_rate: 1e-3}"
    grid.write_text(f"seeds: [1, 2]\nflags: {flags}\n")
    argv = ["--model_name_or_path", tiny_model, "--glue_dir", glue_dir, "--grid", grid, "--tasks", "CoLA"]
    argv = [str(word) for word in [*argv, "--judged", "CoLA", "--seed", "1", "--output_dir", tmp_path / "out"]]

    def run():
        try:
            code = glue_gain.main(argv)
        except SystemExit as end:
            code = end.code
        found = json.loads((tmp_path / "out" / "glue_gain.json").read_text())
        assert code == (0 if found["holds"] else 1)
        return found["points"], {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}

    first, files = run()
    assert {name: set(tasks["CoLA"]) for name, tasks in first.items()} == {TRAINED: {"1", "2"}, RANDOM: {"1", "2"}}
    assert len(files) == 4 and "mean of CoLA" in capfd.readouterr().out
    weights = [(folder / "model.safetensors").read_bytes() for folder in (tiny_model, tmp_path / "out" / "weights")]
    assert len(weights[0]) == len(weights[1]) and weights[0] != weights[1]
    assert run() == (first, files)

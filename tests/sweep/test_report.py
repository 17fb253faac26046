"""The report of a sweep, from real studies in memory; the trials' values are made up, the studies and files are not."""

import csv
import io
import json
from dataclasses import replace

import pytest
import yaml

from budget_trainer.config.parser import read_recipe
from budget_trainer.config.recipe import parse_recipe
from budget_trainer.core.errors import RunError
from budget_trainer.reporting.energy import add_up
from budget_trainer.sweep.report import write_report
from budget_trainer.sweep.results import SweepRecord, _TrialRecord, best_recipe_text, importance
from budget_trainer.sweep.spec import SweepSpec, _Objective
from budget_trainer.sweep.trials import TrialFolder
from tests.conftest import ROOT
from tests.reporting.test_energy import RECORD

RATE = {"learning_rate": {"low": "3e-4", "high": "3e-2", "log": "true"}}
CATEGORIES = {"curve": ["linear", "cosine", "wsd"], "bf16": {"choices": ["true", "false"]}}
SST2 = _Objective(task="SST-2")


def trial(number, state="finished", objective=5.0, share=1.0, last=5.0, error=None, **parameters):
    points = [share * step / 4 for step in range(1, 5)]
    curve = tuple((point, last + 3 * (share - point)) for point in points) if share else ()
    objective = objective if state == "finished" else None
    return _TrialRecord(number, state, parameters, objective, curve, 60 * share + 5, f"trial-{number:04d}", error)


def sweep(*trials, space=RATE, folder="out", **changes):
    content = {"search": "tpe", "objective": "loss", "time_per_trial": "60s", "total_time": "600s"}
    spec = SweepSpec.read({**content, "parameters": space, "output_dir": str(folder)}, "rates")
    return SweepRecord(replace(spec, **changes), 500.0, trials)


def written(record, folder):
    """All files of the report by name, as text but for the picture."""
    files = write_report(replace(record, spec=replace(record.spec, output_dir=folder)))
    assert not [path for path in folder.iterdir() if path.name.startswith(".")], "nothing is left aside"
    assert (folder / "sweep_report.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return {path.name: path.read_text() for path in files if path.suffix != ".png"}


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


FULL = (
    trial(0, objective=5.2, learning_rate=1e-3),
    trial(1, "pruned", share=0.25, last=8.0, learning_rate=3e-4),
    trial(2, "failed", share=0.0, error="loss is not finite", learning_rate=3e-2),
    trial(3, objective=4.8, learning_rate=5e-3),
    trial(4, "pruned", share=0.5, last=7.0, learning_rate=4e-4),
    trial(5, "pruned", share=0.5, last=6.0, learning_rate=6e-4),
    trial(6, "time", share=0.75, last=5.5, learning_rate=4e-3),
    trial(7, objective=6.0, learning_rate=2e-2),
)


def test_files_of_a_full_sweep(tmp_path):
    texts = written(sweep(*FULL), tmp_path)
    assert set(texts) == {"sweep_report.csv", "sweep_report.md", "best_recipe.yaml"}
    rows = rows_of(texts["sweep_report.csv"])
    assert [row["trial"] for row in rows] == ["3", "0", "7", "6", "5", "4", "1", "2"]
    assert [row["rank"] for row in rows] == ["1", "2", "3", "", "", "", "", ""]
    assert float(rows[0]["learning_rate"]) == 5e-3 and float(rows[0]["loss"]) == 4.8
    assert rows[4] | {"state": "pruned", "loss": "", "share_reached": "0.5", "last_value": "6.0"} == rows[4]
    assert rows[-1]["error"] == "loss is not finite" and rows[-1]["folder"] == "trial-0002"
    text = texts["sweep_report.md"]
    assert "pruned at 50 %" in text and "time at 75 %" in text
    assert "| finished | 3 | 3m15s | 57 % |" in text and "| pruned | 3 |" in text
    assert "trial 2 (learning\\_rate 0.03): loss is not finite; its log is trial-0002.log" in text
    assert "one parameter was searched" in text and "second best is 0.4 behind" in text
    assert "Widen the range" not in text, "5e-3 lies well inside"
    assert "| median | 5.2000 | +0.4 |" in text and "| worst | 6.0000 | +1.2 | 7 |" in text
    picture = (tmp_path / "sweep_report.png").read_bytes()
    written(sweep(*FULL), tmp_path)
    assert (tmp_path / "sweep_report.png").read_bytes() == picture, "equal records give equal pictures"


@pytest.mark.parametrize(
    "trials",
    [
        (),
        (trial(0, "failed", share=0.0, error="no memory", learning_rate=1e-3),),
        (trial(0, "pruned", share=0.2, learning_rate=1e-3), trial(1, "time", share=0.0, learning_rate=2e-3)),
    ],
)
def test_no_finished_trial(tmp_path, trials):
    texts = written(sweep(*trials), tmp_path)
    assert "best_recipe.yaml" not in texts and not (tmp_path / "best_recipe.yaml").exists()
    assert "no recipe was written" in texts["sweep_report.md"] and "Widen" not in texts["sweep_report.md"]
    assert [row["rank"] for row in rows_of(texts["sweep_report.csv"])] == [""] * len(trials)


def test_one_trial(tmp_path):
    texts = written(sweep(trial(0, objective=5.1, rank=1), space={"rank": ["1"]}), tmp_path)
    text = texts["sweep_report.md"]
    assert "| best | 5.1000 |" in text and "median" not in text and "behind" not in text
    assert texts["sweep_report.csv"].startswith("rank,trial,state,loss,parameter rank,")


def test_the_highest_score_is_the_best(tmp_path):
    trials = [trial(number, objective=score, learning_rate=2e-3) for number, score in enumerate((0.6, 0.7, 0.5))]
    texts = written(sweep(*trials, objective=SST2), tmp_path)
    assert [row["trial"] for row in rows_of(texts["sweep_report.csv"])] == ["1", "0", "2"]
    assert "trial 1 of 3 (3 finished), glue: SST-2 0.7, to maximize." in texts["best_recipe.yaml"]


def test_the_energy_of_all_trials_adds_up_whatever_their_end(tmp_path):
    used = add_up([RECORD])
    trials = [replace(trial(0, learning_rate=1e-3), energy=used), trial(1, "pruned", share=0.5, learning_rate=2e-3)]
    texts = written(sweep(*trials, fixed={"price_per_hour": "2"}), tmp_path)
    assert [row["kwh"] for row in rows_of(texts["sweep_report.csv"])] == ["1.5", ""]
    told = "Energy: 1.5 kWh (GPU 1.25 kWh, CPU, estimated 250 Wh); not known of 1 of 2 runs; cost 0.06 at 2 per hour."
    assert told in texts["sweep_report.md"]
    assert "Energy" not in written(sweep(*FULL), tmp_path)["sweep_report.md"]


def test_the_energy_of_a_trial_is_of_its_clock_and_of_glue(tmp_path):
    folder = TrialFolder(sweep(folder=tmp_path).spec, 3)
    assert folder.energy() is None
    folder.glue.mkdir(parents=True)
    (folder.path / "clock.json").write_text(json.dumps({"energy": RECORD}))
    assert folder.energy()["kwh"] == 1.5
    (folder.glue / "glue_runs.json").write_text(json.dumps({"energy": RECORD}))
    assert folder.energy()["kwh"] == 3.0


def test_categories(tmp_path):
    kinds = [(curve, bf16) for curve in ("linear", "cosine", "wsd") for bf16 in (True, False)] * 2
    trials = [trial(n, objective=5 - (c == "wsd") + 0.01 * n, curve=c, bf16=b) for n, (c, b) in enumerate(kinds)]
    record = sweep(*trials, space=CATEGORIES, search="grid")
    shares, why_not = importance(record)
    assert why_not is None and list(shares) == ["curve", "bf16"]
    assert sum(shares.values()) == pytest.approx(1) and shares["curve"] > 0.6
    texts = written(record, tmp_path)
    row, text = rows_of(texts["sweep_report.csv"])[0], texts["sweep_report.md"]
    assert (row["curve"], row["bf16"]) == ("wsd", "true")
    assert "one of linear, cosine, wsd" in text and "one of true, false" in text
    assert "bf16: true\n" in texts["best_recipe.yaml"] and "curve: wsd\n" in texts["best_recipe.yaml"]


def test_pruned_trials_count_in_the_importance():
    """The rate decides who is pruned; the decay does nothing. Four finished trials alone would say little."""
    space = {**RATE, "weight_decay": {"low": "0.0", "high": "1.0"}}
    trials = [trial(n, objective=5 + n / 10, learning_rate=1e-2 * 1.1**n, weight_decay=n / 4) for n in range(4)]
    for n in range(4, 16):
        trials.append(trial(n, "pruned", share=0.3, learning_rate=3e-4 * 1.1 ** (n % 10), weight_decay=n % 5 / 5))
    record = sweep(*trials, space=space)
    shares, why_not = importance(record)
    assert why_not is None and shares["learning_rate"] > 0.8
    shares, why_not = importance(sweep(*trials[:3], *trials[4:], space=space))
    assert shares == {} and "at least 4 finished trials" in why_not


def test_markdown_and_line_breaks_stay_text(tmp_path):
    bad = "# no | table\n<b>* `x` [a](b) =1+1"
    failed = trial(0, "failed", error=bad, share=0.0, model_config="a|b")
    trials = (failed, trial(1, objective=4.0, model_config="*c*\n# d"))
    space = {"model_config": ["a|b", "*c*\n# d"]}
    record = sweep(*trials, job_name="a\n# b|$x^2$", space=space, fixed={"hub_token": "s3cret"})
    texts = written(record, tmp_path)
    text = texts["sweep_report.md"]
    assert "\\# no \\| table \\<b\\>\\* \\`x\\` \\[a\\](b) =1+1" in text
    assert text.startswith("# Sweep a \\# b\\|$x^2$\n") and "s3cret" not in "".join(texts.values())
    assert not [line for line in text.splitlines() if line.startswith(("# b", "# no", "# d"))]
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") in (5, 6, 7, 3) for line in tables)
    assert rows_of(texts["sweep_report.csv"])[0]["model_config"] == "*c*\n# d"
    assert recipe_of(texts["best_recipe.yaml"]) == {"model_config": "*c*\n# d"}


@pytest.mark.parametrize(
    ("space", "value", "end"),
    [
        (RATE, 3.1e-4, "lower"),
        (RATE, 2.9e-2, "upper"),
        ({"learning_rate": {"low": "0.0", "high": "1.0"}}, 0.96, "upper"),
        ({"learning_rate": ["1", "2", "4"]}, 4, "upper"),
        ({"learning_rate": ["1", "2"]}, 2, None),
        ({"learning_rate": ["a", "b", "c"]}, "c", None),
        ({"learning_rate": {"low": "1", "high": "1"}}, 1, None),
    ],
)
def test_widen_the_range(tmp_path, space, value, end):
    text = written(sweep(trial(0, learning_rate=value), space=space), tmp_path)["sweep_report.md"]
    assert end is None or f"lies at the {end} end" in text
    assert ("Widen the range" in text) == (end is not None)


def test_a_long_sweep(tmp_path):
    """300 trials of 14 parameters: the table is cut, the CSV is not."""
    space = {f"parameter_{number}": {"low": "0.0", "high": "1.0"} for number in range(14)}
    point = dict.fromkeys(space, 0.5)
    trials = [trial(n, "pruned" if n % 3 else "finished", **{**point, "parameter_0": n / 300}) for n in range(300)]
    texts = written(sweep(*trials, space=space), tmp_path)
    assert "The first 100 of 300" in texts["sweep_report.md"]
    assert len(rows_of(texts["sweep_report.csv"])) == 300


# ---- best_recipe.yaml ----


def recipe_of(text):
    """What it holds, but for the lines that make it run as it is."""
    found = yaml.load(text, Loader=yaml.BaseLoader)
    return {key: value for key, value in found.items() if key not in ("data_dir", "output_dir", "total_training_time")}


@pytest.mark.parametrize("base", [None, *sorted((ROOT / "recipes").glob("*.yaml"))], ids=lambda b: b and b.name)
def test_best_recipe_is_one(tmp_path, base):
    """Of every recipe there is: what was searched and fixed holds, all else is the base's, comments included."""
    space = {**RATE, "warmup_proportion": ["0.0", "0.1"], "model_type": ["bert", "roberta"]}
    best = trial(0, learning_rate=0.0012345678901234, warmup_proportion=0.1, model_type="bert")
    fixed = {"data_dir": "x", "seed": "3", "bf16": "false", "num_hidden_layers": "4", "validate_every": "10%"}
    record = sweep(best, trial(1, objective=9.0), space=space, folder=tmp_path, fixed=fixed, recipe=base)
    path = tmp_path / "best_recipe.yaml"
    path.write_text(best_recipe_text(record))
    recipe = parse_recipe([str(path), "--use_cpu", "true", "--fp16", "false"])  # it runs as it is
    assert recipe.training.learning_rate == 0.0012345678901234
    assert (recipe.budget.warmup_proportion, recipe.model.model_type) == (0.1, "bert")
    assert recipe.model.num_hidden_layers == 4 and recipe.training.bf16 is False
    assert (str(recipe.data_dir), recipe.output_dir, recipe.total_seconds) == ("x", tmp_path / "best", 60)
    before, after = read_recipe(base) if base else {}, read_recipe(path)
    ours = {*space, *fixed}
    assert "seed" not in after
    assert {key: after.get(key) for key in before.keys() - ours} == {key: before[key] for key in before.keys() - ours}
    lines = base.read_text().splitlines() if base else []
    assert all(line in path.read_text() for line in lines if line.startswith("#"))
    head = path.read_text().split("\n\n")[0]
    assert "trial 0 of 2 (2 finished), loss 5, to minimize." in head and "Found with 1m per trial" in head


def merged(tmp_path, base, **changes):
    path = tmp_path / "base.yaml"
    path.write_text(base)
    text = best_recipe_text(sweep(trial(0, learning_rate=2e-3), folder=tmp_path, recipe=path, **changes))
    return text.partition("# Of this run; the command line wins.\n")[2].partition("\n\n")[2], recipe_of(text)


def test_values_are_replaced_where_they_stand(tmp_path):
    base = "\ufeff# mine\nlearning_rate: 1e-3  # tuned\n\n# a part\nmodel_config:\n  a: 1\n  b:\n    - 2\n# after\n"
    base += "no_bf16: true\nseed: 4\n"
    text, read = merged(tmp_path, base, fixed={"bf16": True, "model_config": {"c": [1, None]}, "curve": None})
    assert text == (
        "# mine\nlearning_rate: 0.002  # the sweep's; was 1e-3 (tuned)\n\n# a part\n"
        'model_config: {"c": [1, null]}  # the sweep\'s\n# after\n\n# From the sweep.\nbf16: true\ncurve: null\n'
    )
    assert read == {"learning_rate": "0.002", "model_config": {"c": ["1", "null"]}, "bf16": "true", "curve": "null"}


def test_a_mapping_among_choices_is_written_as_one(tmp_path):
    chosen = '{"attention_bias": true}'
    text = best_recipe_text(sweep(trial(0, model_config=chosen), space={"model_config": ["a", chosen]}))
    assert recipe_of(text) == {"model_config": {"attention_bias": "true"}}
    (tmp_path / "best.yaml").write_text(text)
    flags = ["--data_dir", str(tmp_path), "--use_cpu", "true", "--fp16", "false"]
    assert parse_recipe([str(tmp_path / "best.yaml"), *flags]).model.model_config == chosen, (
        "as the command line gives it"
    )


def test_a_base_that_is_gone(tmp_path):
    record = sweep(trial(0, learning_rate=1e-3), folder=tmp_path, recipe=tmp_path / "gone.yaml")
    with pytest.raises(RunError, match="cannot be read any more .*put it back"):
        write_report(record)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"sweep_report.{end}" for end in ("csv", "md", "png")]
    (tmp_path / "recipe.yaml").write_text("curve: cosine\n")
    write_report(record)
    assert recipe_of((tmp_path / "best_recipe.yaml").read_text()) == {"curve": "cosine", "learning_rate": "0.001"}


def test_the_base_is_what_the_trials_began_with(tmp_path):
    """The sweep's own copy knows; what it strips from the recipe (validations, say) is left out here too."""
    base = "# mine\ncurve: cosine\nvalidate_every: 20%\n"
    (tmp_path / "recipe.yaml").write_text("curve: cosine\n")
    text, read = merged(tmp_path, base)
    assert "# mine\n" in text and read == {"curve": "cosine", "learning_rate": "0.002"}
    text, read = merged(tmp_path, base.replace("cosine", "wsd"))  # edited since
    assert "# mine" not in text and read == {"curve": "cosine", "learning_rate": "0.002"}

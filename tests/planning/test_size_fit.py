"""How large a model for which budget: the fit of many runs, what the planner makes of it, and bad input to both."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks import size_fit as benchmark
from benchmarks.cli import parse_size
from budget_trainer import plan as plan_command
from budget_trainer import planning
from budget_trainer.core.errors import InputError
from budget_trainer.planning import FORMS, SizeFit
from budget_trainer.planning.result import plan_text
from tests.conftest import ROOT, TINY
from tests.planning.test_predict import plan_of

# As of short runs: 1.2 to 2.6 bits per byte where N is 0.3 to 9 and D 0.2 to 32 millions.
KNOWN = {
    "additive": {"E": 0.9, "A": 0.12, "alpha": 0.4, "B": 0.8, "beta": 0.5},
    "joint": {"A": 0.9, "alpha": 0.06, "B": 1.6, "beta": 0.12},
    "quadratic": {"c": 0.6, "c_n": -0.03, "c_d": -0.22, "c_nn": 0.005, "c_nd": -0.006, "c_dd": 0.026},
}
SIZES, MINUTES = ("128x2", "256x2", "256x4", "512x4"), (2, 5, 10, 20)
# Of tokens/s: the power of the FLOPs per token, and the factor before it.
LINES = {"eager": (-0.75, 1.5e9), "compiled": (-0.8, 4e9)}


def made(size, minutes, form="additive"):
    """A line of results.jsonl as of cpu_10m without noise, eager in 2 minutes; 12 s and a hundredth of it are no training."""
    width, layers = parse_size(size, "size")
    # Matrices, the biases of attention, norms (the first layer has one).
    body, seconds = layers * (8.5 * width**2 + 6 * width) - width, 60.0 * minutes
    flops, training = 6 * body + 10_000 * width, 0.99 * seconds - 12
    execution = "eager" if minutes == 2 else "compiled"
    power, level = LINES[execution]
    tokens = training * level * flops**power
    bits = float(FORMS[form](body / 1e6, tokens / 1e6, **KNOWN[form]))
    run = {"size": size, "budget_seconds": seconds, "recipe": "cpu_10m.yaml", "text": "docstrings", "seed": 0}
    run |= {
        "body_parameters": body,
        "parameters": body + 8192 * width,
        "model_type": "modernbert",
        "steps": tokens / 2048,
    }
    run |= {"tokens": tokens, "tokens_per_second": tokens / training, "training_seconds": training}
    run |= {"flops_per_token": flops, "passes": 1.5, "bits_per_byte": bits, "hardware": "2 cores of a CPU"}
    return {**run, "execution": execution, "git_commit": "c" * 40}


def runs_of(form="additive"):
    """The runs of the grid, then those that are held out."""
    grid = [made(size, minutes, form) for minutes in MINUTES for size in SIZES]
    return grid, [made("320x4", 7, form), made("192x3", 15, form)]


GRID, HELD = runs_of()
BEST = benchmark.Fitted("additive", np.array([*KNOWN["additive"].values()]), np.zeros(len(GRID)))
SPEEDS = benchmark.Speeds(GRID)
CONTENT = benchmark.content(BEST, SPEEDS, GRID, HELD)


def write_results(folder, runs):
    (folder / "results.jsonl").write_text("".join(f"{json.dumps(run)}\n" for run in runs))


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """The planner's file, in a folder of its own."""
    path = tmp_path / "package" / "size_fit.json"
    path.parent.mkdir()
    for module in (benchmark, planning):
        monkeypatch.setattr(module, "SIZE_FIT", path)
    return path


@pytest.fixture
def fit_only(tmp_path, stored):
    """Fits runs, and stores what it has found."""

    def call(runs, *more):
        write_results(tmp_path, runs)
        return benchmark.main(["--fit_only", "--write", "--output_dir", str(tmp_path), *more])

    return call


@pytest.mark.parametrize("form", FORMS)
def test_known_coefficients_are_found_and_their_form_is_taken(form, fit_only, stored, capsys):
    grid, held = runs_of(form)
    assert fit_only([*held, *grid]) == 0
    found = SizeFit.read()
    assert found.content["form"] == form and found.content["runs"] == 16
    assert found.content["coefficients"] == pytest.approx(KNOWN[form], rel=0.02, abs=2e-3)
    for run in (*grid, *held):
        assert found.bits_per_byte(run["body_parameters"], run["tokens"]) == pytest.approx(
            run["bits_per_byte"], abs=1e-3
        )
    assert found.content["residual_rms"] < 1e-3 and found.content["leave_one_out_rms"] < 3e-3
    printed = capsys.readouterr().out
    assert printed.count("  yes") == 2 and printed.count("<- taken") == 1 and str(stored) in printed


def test_the_best_size_follows_from_the_fit_and_this_machines_tokens():
    found = benchmark.by_budget(BEST, SPEEDS, [*GRID, *HELD])
    budgets = {row["budget_seconds"]: row for row in found["budgets"]}
    assert [*budgets] == [120, 300, 420, 600, 900, 1200]
    assert [*budgets[120]["bits_per_byte"]] == ["128x2", "192x3", "256x2", "256x4", "320x4", "512x4"]  # by N
    for run in (*GRID, *HELD):
        row = budgets[run["budget_seconds"]]
        assert row["bits_per_byte"][run["size"]] == pytest.approx(run["bits_per_byte"])
        assert row["bits_per_byte"][row["best"]] <= run["bits_per_byte"] + 1e-9
    assert budgets[120]["best"] != budgets[1200]["best"], "a longer budget carries a larger model"
    assert len(benchmark.budgets_table(found).splitlines()) == 9


def test_eager_and_compiled_runs_have_lines_of_their_own():
    for name, (power, level) in LINES.items():
        assert SPEEDS.lines[name] == pytest.approx({"slope": power, "level": np.log(level)})
    assert CONTENT["slopes"] == pytest.approx({"eager": -0.75, "compiled": -0.8})
    lone = benchmark.Speeds([GRID[0], *GRID[4:]])  # one eager run has no slope
    assert lone.lines["eager"] == lone.lines["compiled"] and -0.85 < lone.lines["eager"]["slope"] < -0.75


def test_a_run_is_foreseen_from_its_size_and_budget_alone():
    for run in (*GRID, *HELD):
        blind = {**run, "tokens": 1.0, "tokens_per_second": 1.0, "training_seconds": 1.0}
        assert SPEEDS.foresee(blind)["tokens"] == pytest.approx(run["tokens"])
    # Of the nearest budget: 3 minutes are eager, 4 compiled. Set-up is constant beyond the budgets that were run.
    flops = HELD[0]["flops_per_token"]
    cases = [(180, "eager", 13.8), (240, "compiled", 14.4), (60, "eager", 13.2), (9999, "compiled", 24)]
    for seconds, name, outside in cases:
        power, level = LINES[name]
        expected = (seconds - outside) * level * flops**power
        assert SPEEDS.foresee(HELD[0], seconds)["tokens"] == pytest.approx(expected)
    # A long set-up of one run is not that of its budget.
    slow = {**GRID[5], "training_seconds": GRID[5]["training_seconds"] / 2}
    assert benchmark.Speeds([*GRID[:5], slow, *GRID[6:]]).foresee(GRID[5])["tokens"] == pytest.approx(
        GRID[5]["tokens"]
    )
    assert SPEEDS.foresee(HELD[0], 5)["tokens"] > 0


def test_a_run_that_is_left_out_is_one_that_the_fit_has_not_seen():
    """A run that is off moves its own left-out error by as much, and its seeds are left out together."""
    off = [*GRID[:5], {**GRID[5], "bits_per_byte": GRID[5]["bits_per_byte"] + 0.1}, *GRID[6:]]
    found = benchmark.fit("additive", [*off, off[5]])
    assert found.left_out[5] == found.left_out[-1] == pytest.approx(0.1, abs=0.01)


def test_a_held_out_run_that_is_missed_is_an_exit_code_and_nothing_is_stored(fit_only, stored, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        fit_only([*GRID, HELD[0], {**HELD[1], "bits_per_byte": HELD[1]["bits_per_byte"] + 0.05}])
    assert ended.value.code == 1 and not stored.exists()
    printed = capsys.readouterr().out
    assert "  yes" in printed and "  NO" in printed and "+0.050" in printed
    told = json.loads((tmp_path / "fit.json").read_text())["fit"]["held_out"][1]
    assert told["run"] == "192x3:15m" and told["off"] == pytest.approx(0.05, abs=1e-3) == told["off_by_tokens"]


def test_a_held_out_run_whose_speed_was_not_foreseen_is_missed(fit_only, stored, tmp_path):
    """Its loss follows from its tokens, but they do not follow from its size and budget."""
    known, run = KNOWN["additive"], HELD[1]
    slow = {**run, "tokens": run["tokens"] / 2, "tokens_per_second": run["tokens_per_second"] / 2}
    slow["bits_per_byte"] = FORMS["additive"](run["body_parameters"] / 1e6, slow["tokens"] / 1e6, **known)
    with pytest.raises(SystemExit) as ended:
        fit_only([*GRID, HELD[0], slow])
    assert ended.value.code == 1 and not stored.exists()
    told = json.loads((tmp_path / "fit.json").read_text())["fit"]["held_out"][1]
    assert abs(told["off_by_tokens"]) < 2e-3 and told["off"] > 0.03


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([*GRID[:11], *HELD], "results: 11 runs of 4 sizes are too few for a fit; give 12"),
        ([*GRID[:11], GRID[0], *HELD], "results: 11 runs of 4 sizes are too few"),  # twice the same point
        ([*(made("128x2", minutes) for minutes in range(21, 35)), *HELD], "results: 14 runs of 1 sizes are too few"),
        (GRID, "held_out: 320x4:7m is not among the results"),
        ([*GRID, *HELD, made("320x4", 5)], "held_out: the size of 320x4:7m is one of the fit's"),
        ([*GRID, *HELD, made("192x4", 15)], "held_out: the budget of 192x3:15m is one of the fit's"),
        ([*GRID, HELD[0], {**HELD[1], "text": "other"}], "results: text is docstrings in one run, other in another"),
        (
            [*GRID, HELD[0], {**HELD[1], "hardware": "4 cores of a CPU"}],
            "results: hardware is 2 cores of a CPU in one run, 4 cores of a CPU in another",
        ),
        ([*GRID, {**GRID[0], "tokens": 0}], "results: line 17 of .*: tokens is 0 and no number above zero; delete"),
        ([*GRID, {**GRID[0], "bits_per_byte": float("nan")}], "bits_per_byte is nan"),
        ([*GRID, {**GRID[0], "hardware": None}], "hardware is None and no text"),
        ([[]], "results: line 1 of .* is no object"),
        ([{}], "results: line 1 of .*: size is None and no text"),
    ],
)
def test_results_that_are_refused(runs, message, fit_only, stored, capsys):
    assert fit_only(runs) == 2 and not stored.exists()
    (line,) = capsys.readouterr().err.splitlines()
    with pytest.raises(InputError, match=message):
        raise InputError(line.removeprefix("error: "))


def test_a_torn_line_is_named(tmp_path):
    write_results(tmp_path, GRID)
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"size": "12')
    with pytest.raises(InputError, match="results: line 17 of .* is not JSON; delete the line"):
        benchmark.read_results(tmp_path / "results.jsonl")


README = str(ROOT / "README.md")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--sizes 100x2 128x2", "sizes: the width of 100x2 is no multiple of 64, a head; give 128x2"),
        ("--sizes 256", "sizes: '256' is not width x layers"),
        ("--budgets 5", "budgets: '5' has no unit"),
        (
            "--sizes 128x2 256x4 --budgets 2m 5m 10m",
            "sizes, budgets: 6 runs of 2 sizes are too few for a fit; give 12",
        ),
        ("--sizes 128x2 128x2 192x4 --budgets 2m 120s 5m 10m 20m 1h", "10 runs of 2 sizes are too few"),
        ("--held_out 320x4:7m", "held_out: 1 run is too few"),
        ("--held_out 320x4:7m 256x4:7m", "held_out: the size of 256x4:7m is one of the fit's; give another size"),
        ("--held_out 320x4:7m 320x4:5m", "held_out: the budget of 320x4:5m is one of the fit's; give another budget"),
        ("--held_out 320x4:7m 320x4", "held_out: '320x4' is not a size and a budget"),
        ("--held_out 320x4:7m 300x4:7m", "held_out: the width of 300x4 is no multiple of 64, a head; give 320x4"),
        ("--text nonesuch", "text: nonesuch does not exist"),
        (f"--eval_text {README}", "eval_text: it belongs to a training text"),
        (f"--data_dir {ROOT} --text {README}", "leave --text, --eval_text and --tokenizer out"),
        (f"--data_dir {ROOT}", "data_dir: .* is no data folder"),
        ("--recipe nonesuch", "recipe: 'nonesuch' is neither a file nor a recipe"),
        ("--recipe nonesuch.yaml", "recipe: nonesuch.yaml cannot be read"),
        (f"--recipe {ROOT / 'accelerate_configs' / 'cpu.yaml'}", "has no hidden_size and intermediate_size"),
        ("--config_file nonesuch", "config_file: nonesuch is not there"),
        ("--fit_only", "results.jsonl is not there; give the folder of a run"),
    ],
)
def test_flags_that_are_refused(flags, message, tmp_path):
    with pytest.raises(InputError, match=message):
        benchmark.parse([*flags.split(), "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_each_result_is_kept_and_resume_runs_what_is_missing(tmp_path, stored, monkeypatch):
    ran, limit = [], 3

    def run_job(a, job, data):
        if len(ran) == limit:
            raise InputError("run: it failed")
        ran.append((job["size"], job["budget_seconds"] / 60))
        return {**made(*ran[-1]), **job}

    monkeypatch.setattr(benchmark, "prepare", lambda a: "data")
    monkeypatch.setattr(benchmark, "run_job", run_job)
    words = ["--output_dir", str(tmp_path)]
    assert benchmark.main(words) == 2 and ran == [("128x2", 2), ("256x2", 2), ("256x4", 2)]
    with pytest.raises(InputError, match="holds results; add --resume"):
        benchmark.parse(words)
    limit = 100
    assert benchmark.main([*words, "--resume"]) == 0
    assert len(ran) == len(set(ran)) == 18 and ran[-2:] == [("320x4", 7), ("192x3", 15)]
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 18 and not stored.exists()  # without --write
    assert benchmark.main([*words, "--resume", "--recipe", "quickstart"]) == 2, "another recipe in the same folder"
    assert len(ran) == 18


def test_a_size_is_the_recipe_in_its_proportion(tmp_path, monkeypatch):
    asked = {}

    def train_recipe(profile, recipe, data, folder, seconds, seed):
        asked.update(yaml.safe_load(Path(recipe).read_text()), seconds=seconds, seed=seed)
        shares = {"setup": 9.0, "compile": 10.0, "train": 90.0, "data_wait": 1.0, "evaluate": 0.0, "save": 1.0}
        found = {
            "shares": shares,
            "steps": 50,
            "tokens": 102_400,
            "tokens_per_second": 1024.0,
            "passes_over_corpus": 0.5,
        }
        found |= {
            "recipe": {"torch_compile": True},
            "model_tflops_per_second": 0.002048,
            "parameters": 10**6,
            "model_type": "modernbert",
        }
        found |= {"evaluation": {"bits_per_byte": 1.9}, "hardware": {"gpus": [], "cores": 2, "cpu": "a CPU"}}
        return {**found, "git_commit": None}

    monkeypatch.setattr(benchmark, "train_recipe", train_recipe)
    monkeypatch.setattr(benchmark, "body_of", lambda model: 300_000)
    a = benchmark.parse(["--output_dir", str(tmp_path / "out"), "--seed", "3"])
    a.output_dir = tmp_path / "out"
    run = benchmark.run_job(a, benchmark.jobs(a)[0], "data")
    shape = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 192}
    assert asked.items() >= {**shape, "seconds": 120.0, "seed": 3, "optimizer_type": "muon"}.items()
    assert run["training_seconds"] == 91.0 and run["execution"] == "compiled"  # 10 s of compiling are neither
    assert run["tokens_per_second"] == 102_400 / 91 and run["flops_per_token"] == pytest.approx(2e6)
    assert (run["hardware"], run["text"], run["recipe"]) == ("2 cores of a CPU", "docstrings", "cpu_10m.yaml")
    assert benchmark.check_run(run, "run", "") == run


@pytest.mark.slow
def test_a_real_run_gives_a_line_of_results(data_dir, tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    a = benchmark.parse(
        ["--recipe", str(tmp_path / "tiny.yaml"), "--data_dir", str(data_dir), "--output_dir", str(tmp_path / "out")]
    )
    a.output_dir = tmp_path / "out"
    job = {**benchmark.jobs(a)[0], "size": "64x1", "budget_seconds": 25.0}
    run = benchmark.check_run(benchmark.run_job(a, job, benchmark.prepare(a)), "run", "")
    assert run["model_type"] == "modernbert" and 20_000 < run["body_parameters"] < run["parameters"]
    # 6 FLOPs per parameter of the layers, less in a sparse last layer, and the head's.
    assert 1e4 < run["flops_per_token"] < 1e7 and run["tokens"] == run["steps"] * 8 * 64


# ---- the planner ----

# Twelve days of a BERT by the measurements of test_predict.py: 2 thousand million tokens of the recipe's own size.
BERT = {"parameters": 109 * 10**6, "body_parameters": 85 * 10**6, "predicted_share": 0.15}
FLAGS = {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "total_training_time": "1000000s"}
WIDE = {"body_parameters": [1e6, 4e8], "tokens": [1e8, 1e11], "product": [1e14, 1e20]}


def planned(fit):
    plan = plan_of(flags=FLAGS, size_fit=fit, **BERT)
    return plan["sizes"], " ".join(plan_text(plan).split())


def fit_of(model_type="bert", **limits):
    return SizeFit({**CONTENT, "model_type": model_type, "range": WIDE | limits})


def test_the_size_of_the_fewest_bits_suits():
    sizes, text = planned(fit_of())
    bits = [
        float(FORMS["additive"](row["body_parameters"] / 1e6, row["tokens"] / 1e6, **KNOWN["additive"]))
        for row in sizes
    ]
    assert [row["bits_per_byte"] for row in sizes] == pytest.approx(bits)
    assert [row["suits"] for row in sizes] == [value == min(bits) for value in bits]
    assert "bits per byte*" in text and text.count("<- suits") == 1
    assert "a fit of 16 runs of cpu_10m.yaml on docstrings (2 cores of a CPU)" in text
    assert "It holds for bert with 1 to 400 M parameters in the layers" in text


def test_sizes_outside_of_the_fit_have_no_bits():
    whole, _ = planned(fit_of())
    tokens = [row["tokens"] for row in whole]
    some, text = planned(fit_of(tokens=[1.0, tokens[2]]))  # the two smallest see more
    assert [row["bits_per_byte"] is None for row in some] == [True, True, False, False]
    assert [row["suits"] for row in some].count(True) == 1 and text.count("<- suits") == 1
    one, text = planned(fit_of(tokens=[1.0, tokens[3]]))
    assert not any(row["suits"] for row in one) and "One size alone lies there, so none is named" in text


def test_the_default_grid_holds_the_recipe_and_its_neighbours(tmp_path):
    assert {size for size, _ in benchmark.parse(["--output_dir", str(tmp_path)]).points} == set(SIZES)
    own = GRID[1]
    assert own["size"] == "256x2" and own["body_parameters"] == 1_116_928
    flags = {"num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 4}
    model = {name: own[name] for name in ("model_type", "parameters", "body_parameters")}
    lengths = {"tokens": [1.0, 1e12], "product": [1.0, 1e20]}
    fit = fit_of("modernbert", body_parameters=CONTENT["range"]["body_parameters"], **lengths)
    rows = plan_of(flags=flags, size_fit=fit, predicted_share=0.3, **model)["sizes"]
    assert [(row["layers"], row["width"]) for row in rows] == [(2, 128), (2, 256), (4, 256), (4, 512)]
    assert all(row["bits_per_byte"] is not None for row in rows)
    assert rows[0]["body_parameters"] < GRID[0]["body_parameters"], "scaled, it is a little less than in truth"
    assert not fit.covers("modernbert", 0.9 * GRID[0]["body_parameters"]), "but this is another size"


@pytest.mark.parametrize(("compile", "power"), [("no", 0.75), ("whole", 0.8)])
def test_tokens_of_other_sizes_follow_the_slope_of_the_fit(compile, power):
    def rows(fit):
        return plan_of(flags=FLAGS, size_fit=fit, compile=compile, **BERT)["sizes"]

    plain, fitted = rows(None), rows(fit_of())
    own = next(row["tokens"] for row in plain if row["own"])
    assert [row["tokens"] for row in fitted] == pytest.approx([own * (row["tokens"] / own) ** power for row in plain])
    assert {row["tokens_by"] for row in fitted} == {"speed"} and {row["tokens_by"] for row in plain} == {"FLOPs"}
    assert "tokens, by speed" in planned(fit_of())[1] and "tokens, by FLOPs" in planned(None)[1]
    # Sizes and types that the fit does not know have their tokens by FLOPs.
    for fit in (fit_of("modernbert"), fit_of(body_parameters=[1e5, 1e6])):
        assert [row["tokens"] for row in rows(fit)] == [row["tokens"] for row in plain]


def test_one_kind_of_steps_speaks_for_the_other():
    fit = SizeFit({**CONTENT, "slopes": {"compiled": -0.8}})
    assert fit.slope(compiled=False) == fit.slope(compiled=True) == -0.8


@pytest.mark.parametrize(
    ("fit", "words"),
    [
        (None, "Which size suits is not known here: no runs were fitted"),
        (fit_of(model_type="modernbert"), "holds for modernbert with 1 to 400 M parameters"),
        (fit_of(body_parameters=[1e3, 1e6]), "holds for bert with 0.001 to 1 M parameters in the layers, 100 to"),
        (fit_of(product=[1.0, 2.0]), "Which size suits is not known here: what is known of sizes, a fit of runs"),
    ],
)
def test_where_nothing_is_known_of_sizes_none_is_named(fit, words):
    sizes, text = planned(fit)
    assert len(sizes) == 4 and not any(row["suits"] or row["bits_per_byte"] for row in sizes)
    assert words in text and "bits per byte*" not in text and "<- suits" not in text


def test_a_package_without_a_fit(stored):
    assert SizeFit.read() is None


DAMAGED = {
    "empty": "",
    "a list": "[]",
    "no form": json.dumps({**CONTENT, "form": "cubic"}),
    "another format": json.dumps({**CONTENT, "format": 2}),
    "a coefficient less": json.dumps({**CONTENT, "coefficients": {"E": 1.0}}),
    "no number": json.dumps({**CONTENT, "coefficients": KNOWN["additive"] | {"E": float("nan")}}),
    "no range": json.dumps({**CONTENT, "range": {}}),
    "a range upside down": json.dumps({**CONTENT, "range": WIDE | {"tokens": [2.0, 1.0]}}),
    "no text": json.dumps({**CONTENT, "recipe": None}),
    "no slope": json.dumps({**CONTENT, "slopes": {}}),
    "a slope of text": json.dumps({**CONTENT, "slopes": {"eager": "-0.8"}}),
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_fit_ends_the_planner_in_a_line_before_it_probes(text, stored, tmp_path, monkeypatch, capsys):
    stored.write_text(text)
    monkeypatch.setattr(plan_command, "_ask_probe", lambda *given: pytest.fail("a minute was spent"))
    words = ["cpu_10m", "--total_training_time", "1h", "--data_dir", "d", "--picture", str(tmp_path / "p.png")]
    assert plan_command.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: size_fit: {stored} is not a fit of sizes (") and line.endswith("or delete it")

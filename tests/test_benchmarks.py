"""Each benchmark runs end to end at toy size, and its JSON has the keys that its table shows."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import ablations, comparison, grown_budget, quality_at_budget, scaling, throughput
from benchmarks.baselines import runs
from benchmarks.measured import PHASES, Gauge, Stretches
from benchmarks.workload import ROWS, Text, Workload, fit, write_zipf
from budget_trainer.core.errors import InputError
from tests.conftest import ROOT, run, words

TOY = ["--vocab_size", 200, "--seq_length", 32, "--steps", 2, "--warmup_steps", 1, "--peak_seconds", 0.02]
TOY += ["--no_compile", "--heads", 2, "--intermediate_size", 64]


@pytest.mark.slow
def test_throughput_writes_what_it_says(tmp_path):
    flags = {"variants": "ours,stock", "rounds": 2, "hidden_size": 32, "layers": 1, "batch_size": 4}
    command = [sys.executable, "benchmarks/throughput.py", *TOY, "--use_cpu", *words(flags), "--output_dir", tmp_path]
    printed = run(command, ok=True).stdout
    result = json.loads((tmp_path / "throughput.json").read_text())
    assert {"benchmark", "asked", "variants", "rounds", "versions", "hardware", "git_commit"} <= set(result)
    assert len(result["rounds"]) == 2 and list(result["rounds"][1]) == ["stock", "ours"], "turns rotate"
    for name, row in result["variants"].items():
        assert {"median", "min", "max"} == set(row["tokens_per_second"]) == set(row["ratio_to_stock"])
        assert set(row["shares"]) == {*PHASES, "rest", "trainer_overhead"}
        assert sum(row["shares"][phase] for phase in (*PHASES, "rest")) == pytest.approx(1)
        assert all(row["shares"][phase] > 0 for phase in PHASES)
        assert 0 < row["mfu"] <= row["mfu_computed"] and row["peak_memory_mib"] > 50
        assert row["compile_seconds"] == 0 and row["workload"]["batch_size"] == 4 and row["compile"] == "no"
        assert name in printed
    ours, stock = (result["variants"][name] for name in ("ours", "stock"))
    assert stock["ratio_to_stock"]["median"] == 1 and stock["dtype"] == "float32"
    assert ours["flops_per_token_computed"] < stock["flops_per_token_computed"]
    # 4 of 30 tokens are predicted, and only there ours computes its last layer, which is also its first here.
    assert 0.3 < ours["flops_per_token"] / stock["flops_per_token"] < 0.5


def test_summary_of_throughput():
    """2 rounds: 1,000 and 2,000 tokens/s of ours, 500 of stock; the ratio is taken round by round."""
    size = {"batch_size": 10, "block_size": 10}
    jobs = {"ours": Workload(**size), "stock": Workload(**size, sparse=False, bf16=False)}
    facts = {
        name: {"peak_flops": peak, "flops_per_token": 2.0, "flops_per_token_computed": 4.0, "device": "cpu"}
        | {"warmup_seconds": 3.0, "warmup_steps": 2, "first_step_seconds": 2.0, "dtype": name, "compile": "whole"}
        for name, peak in (("ours", 1e6), ("stock", 5e5))
    }

    def turn(seconds):
        return {"steps": 10, "seconds": seconds, "phases": dict.fromkeys(PHASES, seconds / 10), "peak_memory_mib": 7.0}

    rounds = [{"ours": turn(1.0), "stock": turn(2.0)}, {"ours": turn(0.5), "stock": turn(2.0)}]
    rows = throughput.summarise(jobs, facts, rounds, {})
    assert rows["ours"]["tokens_per_second"] == {"median": 1500, "min": 1000, "max": 2000}
    assert rows["ours"]["ratio_to_stock"] == {"median": 3, "min": 2, "max": 4}
    assert rows["ours"]["mfu"] == pytest.approx(2 * 1500 / 1e6)
    assert rows["stock"]["mfu_computed"] == pytest.approx(4 * 500 / 5e5)
    assert rows["ours"]["shares"]["rest"] == pytest.approx(0.5)
    assert rows["ours"]["shares"]["trainer_overhead"] == pytest.approx(0.7)
    assert rows["ours"]["compile_seconds"] == pytest.approx(3.0 - 2 * 100 / 1500)
    assert len(throughput.table(rows).splitlines()) == 3


def test_variants_are_what_their_names_say():
    a = throughput.parse(["--stock_bf16", "--variants", ",".join(throughput.VARIANTS), "--model_config", '{"a": 1}'])
    jobs = {name: throughput.workload(a, name) for name in a.names}
    assert list(jobs) == list(throughput.VARIANTS), "stock_bf16 is not there twice"
    assert jobs["ours"] == Workload(settle=True, model_config={"a": 1})
    assert jobs["ours_bf16_compiled"] == Workload(model_config={"a": 1})
    assert (jobs["stock_no_dropout"].dropout, jobs["ours_no_dropout"].dropout, jobs["stock"].dropout) == (0, 0, 0.1)
    assert jobs["stock"].model_config is None and jobs["stock_bf16"].bf16
    assert not (jobs["stock"].sparse or jobs["stock"].bf16 or jobs["stock"].compile)
    assert jobs["dense"] == Workload(settle=True, sparse=False, model_config={"a": 1})
    assert jobs["ours_modernbert"].intermediate_size == 704, "two thirds of 1024, a multiple of 64"


def test_made_text(tmp_path):
    write_zipf(tmp_path / "a.arrow", rows=ROWS, block_size=8, vocab_size=50)
    text = Text(str(tmp_path / "a.arrow"), Workload(vocab_size=50, block_size=8))
    rows = text.rows(multiple=100)
    assert rows.shape == (16_400, 8) and rows.dtype == torch.int32
    assert (rows[:, 0] == 2).all() and (rows[:, -1] == 3).all()
    counts, expected = torch.bincount(rows[:, 1:-1].flatten(), minlength=50), 1 / (torch.arange(45) + 2.7)
    assert len(counts) == 50 and not counts[:5].any()
    assert torch.allclose(counts[5:] / counts.sum(), expected / expected.sum(), atol=0.005)
    tokenizer = text.tokenizer()
    assert len(tokenizer) == 50 and tokenizer.mask_token_id == 4 and tokenizer.pad_token_id == 0


def test_text_from_a_data_folder(data_dir, tmp_path):
    workload, path = fit(Workload(block_size=64), str(data_dir), tmp_path)
    assert path == str(data_dir) and workload.vocab_size < 30_522
    text = Text(path, workload)
    assert text.rows(8).shape[1] == 64 and text.tokenizer().mask_token_id == text.special_ids["mask"]
    with pytest.raises(InputError, match="give --seq_length 64"):
        fit(Workload(block_size=128), str(data_dir), tmp_path)
    for block, vocabulary in ((2, 100), (8, 5)):
        with pytest.raises(InputError, match="seq_length"):
            write_zipf(tmp_path / "a.arrow", rows=1, block_size=block, vocab_size=vocabulary)


def test_stretches_leave_out_warmup_and_waiting():
    """2 steps of warm-up, a stretch of 3 after a settling step, a stretch of 1 after another, the end."""
    accounts, counts, answers = [], [], [(3, False), (1, True), None]

    def next_stretch(account):
        accounts.append(account)
        counts.append(steps)
        return answers[len(accounts) - 1]

    callback = Stretches(Gauge(torch.device("cpu")), 2, next_stretch)
    control = SimpleNamespace(should_training_stop=False)
    callback.on_train_begin(None, None, control)
    steps = 0
    while not control.should_training_stop:
        steps += 1
        assert steps < 20
        callback.on_step_end(None, None, control)
    assert counts == [2, 6, 8] and set(accounts[0]) == {"warmup_seconds", "first_step_seconds"}
    assert [account["steps"] for account in accounts[1:]] == [3, 1]
    assert set(accounts[1]) == {"steps", "seconds", "phases", "peak_memory_mib"}


@pytest.mark.slow
def test_scaling_goes_on_after_a_point_that_fails(tmp_path):
    flags = ["--sizes", "33x1", "32x1", *words({"batch_sizes": 4, "launch": "cpu", "output_dir": tmp_path})]
    done = run([sys.executable, "benchmarks/scaling.py", *flags, *TOY, "--png"], ok=True)
    result = json.loads((tmp_path / "scaling.json").read_text())
    assert {"benchmark", "asked", "points", "versions", "hardware", "git_commit"} <= set(result)
    failed, good = result["points"]
    assert failed["status"] == "failed" and "hidden_size=33" in failed["error"]
    assert good["status"] == "ok" and good["launch"] == "cpu" and good["workload"]["hidden_size"] == 32
    figures = "processes parameters tokens_per_second step_seconds mfu peak_memory_mib first_step_seconds".split()
    assert all(good[name] > 0 for name in figures)
    assert good["tokens_per_second"] == pytest.approx(4 * 32 / good["step_seconds"])
    assert "failed: " in done.stdout and (tmp_path / "scaling.png").stat().st_size > 1000


def test_the_last_line_of_a_point():
    for log, line in (
        ("a\nerror: sizes: bad\nsubprocess.CalledProcessError: Command", "error: sizes: bad"),
        ("torch.OutOfMemoryError: CUDA out of memory\nE1 torch.distributed ChildFailedError:\n", "torch.OutOfMemory"),
        ("Killed\n", "Killed"),
        ("", "no output"),
    ):
        assert scaling.last_error(log).startswith(line)


def test_bad_flags_are_refused():
    for benchmark, flags, message in (
        (throughput, ["--variants", "ours,theirs"], "variants: 'theirs' is unknown"),
        (scaling, ["--sizes", "256"], "sizes: '256' is not width x layers"),
        (scaling, ["--launch", "nonesuch"], "launch: 'nonesuch' is none of"),
        (scaling, ["--steps", "0"], "steps: 0 is below 1"),
        (
            grown_budget,
            ["--recipe", "r", "--data_dir", "d", "--budgets", "2m,1m"],
            "budgets: 2m,1m are not a shorter and",
        ),
    ):
        with pytest.raises(InputError, match=message):
            benchmark.parse(flags)


def test_points_are_every_combination():
    a = scaling.parse(["--sizes", "128x2", "256x4", "--batch_sizes", "8", "16", "--launch", "cpu", "ddp:4"])
    jobs = scaling.points(a)
    assert len(jobs) == 8 and [launch for launch, _ in jobs[::4]] == ["cpu", "ddp:4"]
    assert jobs[2][1].num_attention_heads == 4 and jobs[2][1].intermediate_size == 1024
    assert a.launches[1] == (str(ROOT / "accelerate_configs" / "ddp.yaml"), ["--num_processes", "4"])


def test_the_table_of_prolonged_runs():
    row = {"seed": 0, "short": 2.5, "grown": 2.3, "whole": 2.25, "difference": 0.05, "used": 239.0}
    kill = {"killed_after": 30.0, "grown": 2.31, "used": 238.0, "jobs": 3, "held": False}
    first, second = grown_budget.table([{**row, "clock": -0.001, "held": True}], [kill]).splitlines()[1:]
    assert first.split() == "seed 0 2.500 2.300 2.250 +0.0500 239.0s -0.10% held".split()
    assert second == "killed after 30.0s: 2.310 bits per byte, used 238.0s in 3 jobs NOT"


@pytest.fixture
def asked(tmp_path):
    """Flags of quality_at_budget.py whose files exist."""
    paths = {name: tmp_path / name for name in ("text", "eval_text", "tokenizer")}
    for path in paths.values():
        path.touch()
    paths |= {"config_file": ROOT / "accelerate_configs" / "cpu.yaml", "output_dir": tmp_path / "out"}
    return words({**paths, "recipes": ROOT / "recipes" / "cpu_10m.yaml"})


def test_variants_run_seed_by_seed(asked):
    flags = ["--seeds", "2", "--baselines", "stock_bert", "--ablate", "wide: hidden_size=512 curve=cosine"]
    a = quality_at_budget.parse([*asked, *flags, "--ablate", "plain: offset_heads=null"])
    a.first_seed = 5
    best = {"stock_bert": runs.Best({"size": "128x2"}, "not tuned")}
    jobs = quality_at_budget.plan(a, best)
    expected = [(name, seed) for seed in (5, 6) for name in ("cpu_10m", "wide", "plain", "stock_bert")]
    assert [(job["name"], job["seed"]) for job in jobs] == expected
    assert jobs[1]["changes"] == {"hidden_size": "512", "curve": "cosine"} and "changes" not in jobs[0]
    assert jobs[3]["kind"] == "baseline" and jobs[3]["flags"] == {"size": "128x2"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ablate", "wide: hidden_size"], "cannot be read"),
        (["--ablate", "wide:"], "changes nothing"),
        (["--ablate", "a: curve=exp", "--ablate", "a: curve=wsd"], "given twice"),
        (["--ablate", "a: hidden=512"], "'hidden', which is no flag"),
        (["--ablate", "cpu_10m: curve=exp"], "name of another run"),
        (["--ablate", "a: curve=exp", "--recipes", "recipes/cpu_10m.yaml", "recipes/quickstart.yaml"], "one recipe"),
        (["--ablations", "nonesuch.yaml"], "cannot be read"),
        (["--ablate", "stock_bert: curve=exp"], "name of another run"),
        (["--baselines", "nonesuch"], "'nonesuch' is unknown; give some of expert_modernbert"),
        (["--tune", "3"], "trials: 3 are too few"),
        (["--tune", "12", "--tuned", "README.md"], "leave one of the two out"),
        (["--tuned", "nonesuch.yaml"], "nonesuch.yaml does not exist"),
        (["--downstream", "nonesuch"], "nonesuch is not a folder"),
        (["--seeds", "0"], "must be 1 or more"),
        (["--baselines", "stock_bert", "stock_bert"], "two runs are called stock_bert"),
        (["--ablate", "a b: curve=exp", "--ablate", "a-b: curve=exp"], "two runs are called a-b"),
        (["--data_dir", "recipes"], "recipes holds no manifest.json"),
    ],
)
def test_bad_flags_of_quality_at_budget(flags, message, asked):
    with pytest.raises(InputError, match=message):
        quality_at_budget.parse([*asked, *flags])


def results():
    """Two seeds of a recipe and a variant, the second seed 0.1 harder for both; one run of a baseline."""
    common = {"loss": 4.0, "accuracy": 0.3, "used_seconds": 10.0}
    rows = [("ours", "base", 0, 1.7, 100), ("ablation", "off", 0, 1.9, 50), ("ours", "base", 1, 1.8, 100)]
    rows += [("ablation", "off", 1, 2.1, 100), ("baseline", "stock_bert", 0, 2.7, 20)]
    keys = ("kind", "name", "seed", "bits_per_byte", "tokens_per_second")
    return [{**common, **dict(zip(keys, row, strict=True))} for row in rows]


def test_summary_of_variants():
    base, off, stock = quality_at_budget.summarise(results())
    bits = base["bits_per_byte"]
    figures = [bits[key] for key in ("median", "mean", "min", "max", "spread")]
    assert figures == pytest.approx([1.75, 1.75, 1.7, 1.8, 0.1])
    assert base["bits_per_byte_above_ours"] == 0 and stock["bits_per_byte_above_ours"] == pytest.approx(0.95)
    assert stock["tokens_per_second_ratio"] == pytest.approx(0.2)
    assert "bits_per_byte_to_base" not in base and "bits_per_byte_to_base" not in stock
    delta = off["bits_per_byte_to_base"]
    assert [delta[key] for key in ("mean", "min", "max")] == pytest.approx([0.25, 0.2, 0.3])
    assert off["tokens_per_second_to_base"] == pytest.approx(0.75)
    assert "+0.250" in ablations.table([base, off, stock]) and "stock" not in ablations.table([base, off, stock])
    assert ablations.table([base, stock]) == ""
    assert len(quality_at_budget.table([base, off, stock]).splitlines()) == 4
    stock["downstream"] = {"median": 51.23, "min": 50.0, "max": 52.0}
    assert "51.2 (50.0 to 52.0)" in quality_at_budget.table([base, off, stock])
    failed = {"kind": "baseline", "name": "expert", "seed": 0, "failed": "run: no memory"}
    again = {**failed, "name": "stock_bert", "seed": 1}
    *_, stock, expert = quality_at_budget.summarise([*results(), failed, again])
    assert expert == {"name": "expert", "kind": "baseline", "runs": 0, "failed": ["run: no memory"]}
    assert stock["runs"] == 1 and stock["bits_per_byte"]["median"] == 2.7
    lines = quality_at_budget.table([base, stock, expert]).splitlines()
    assert lines[2].startswith("stock_bert") and lines[2].endswith("1 failed: run: no memory")
    assert lines[3].split(maxsplit=2) == ["expert", "0", "1 failed: run: no memory"]
    alone = quality_at_budget.summarise([result for result in results() if result["kind"] != "ours"])
    assert "bits_per_byte_to_base" not in alone[0], "a variant without its seed of the base"


def test_the_table_of_flags():
    found = runs.Best(
        {"size": "128x2", "learning_rate": 1e-3}, "tuned", [{"flags": {"size": "128x2"}, "bits_per_byte": 2}]
    )
    best = {"stock_bert": found, "expert_modernbert": runs.Best({}, runs.NOT_TUNED)}
    steps = {"name": "stock_bert", "steps": 95, "planned_steps": 100, "last_learning_rate": 5e-5}
    judged = [{"name": "expert_modernbert", "compiled": compiled} for compiled in (True, False, True)]
    failed = {"name": "stock_bert", "failed": "run: no memory"}
    assert quality_at_budget.flags_table(best, [steps, *judged, failed]).splitlines() == [
        "",
        "stock_bert: size 128x2, learning_rate 1.00e-03; tuned",
        "    2.000 bits/byte: size 128x2",
        "    planned steps done, and the last rate: 95 of 100 to 5.0e-05",
        "expert_modernbert: its defaults; not tuned",
        "    compiled: 2 of 3 runs",
    ]
    assert quality_at_budget.flags_table({}, []) == ""


# ---- the folder of a comparison ----


@pytest.fixture
def compare(asked, monkeypatch, tmp_path):
    """Call quality_at_budget.py for a recipe and a baseline on fake runs: the exit code and what it ran.

    What is in `compare.broken` fails; `compare.here` is the environment.
    """
    ran, broken, here = [], set(), {"git_commit": "abc", "hardware": {"gpus": [], "cores": 2, "cpu": "a CPU"}}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").touch()

    def train(a, job, *given):
        ran.append((job["name"], job["seed"]))
        if job["name"] in broken:
            raise InputError("run: no memory")
        return dict.fromkeys(comparison.FIGURES, 1.0)

    monkeypatch.setattr(runs, "TUNED", tmp_path / "none.yaml")
    monkeypatch.setattr(quality_at_budget, "prepare", lambda a: str(tmp_path / "data"))
    monkeypatch.setattr(quality_at_budget, "environment", lambda: here)
    monkeypatch.setattr(quality_at_budget, "run_ours", train)
    monkeypatch.setattr(quality_at_budget, "run_baseline", train)

    def call(*flags):
        ran.clear()
        try:
            code = quality_at_budget.main([*asked, "--seeds", "1", "--resume", "--baselines", "stock_bert", *flags])
        except SystemExit as ended:
            code = ended.code
        return code, [*ran]

    call.broken, call.here, call.folder = broken, here, tmp_path / "out"
    return call


def test_a_baseline_that_fails_is_a_line_and_is_repeated(compare, capsys):
    compare.broken.add("stock_bert")
    assert compare() == (1, [("cpu_10m", 0), ("stock_bert", 0)])
    assert "1 failed: run: no memory" in capsys.readouterr().out
    assert compare("--seeds", "2") == (1, [("stock_bert", 0), ("cpu_10m", 1), ("stock_bert", 1)])
    compare.broken.clear()
    assert compare("--seeds", "2") == (0, [("stock_bert", 0), ("stock_bert", 1)])
    assert compare("--seeds", "2") == (0, [])
    rows = json.loads((compare.folder / "results.json").read_text())["summary"]
    assert [row["runs"] for row in rows] == [2, 2] and not any("failed" in row for row in rows)
    compare.broken.add("cpu_10m")
    assert compare("--seeds", "3") == (2, [("cpu_10m", 2)]), "without ours there is nothing to compare"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--budget", "301s"], "budget: the results in {} have 300s, this comparison has 301s; give another"),
        (["--max_blocks", "5"], "max_blocks: the results in {} have 2000, this comparison has 5;"),
        (["--packing", "bucketed"], "packing: the results in {} have packed, this"),
        (["--config_file", "ddp"], "config_file: the results in {} have "),
        (["--eval_text", "README.md"], "eval_text: the results in {} have "),
        (["--tokenizer", "recipes"], "tokenizer: the results in {} have "),
        (["--tuned", "tuned.yaml"], "flags of stock_bert: the results in {} have {{}}, this comparison has {{'size':"),
        (["--recipes", "cpu_10m.yaml"], "recipe of cpu_10m: the results in {} have "),
        ([], "git_commit: the results in {} have abc, this comparison has abc-dirty;"),
    ],
    ids=lambda value: value[0] if value and isinstance(value, list) else "",
)
def test_a_folder_belongs_to_one_comparison(compare, flags, message, capsys, tmp_path, monkeypatch):
    (tmp_path / "cpu_10m.yaml").write_text("learning_rate: 1e-3\n")
    entry = {"flags": {"size": "64x1"}, "finished": 12, "trials": 12, "hardware": "a GPU"}
    runs.record(tmp_path / "tuned.yaml", "stock_bert", 300.0, entry)
    flags = [str(tmp_path / word) if word in ("cpu_10m.yaml", "tuned.yaml") else word for word in flags]
    assert compare()[0] == 0
    before = (compare.folder / "results.jsonl").read_bytes()
    if not flags:
        monkeypatch.setitem(compare.here, "git_commit", "abc-dirty")
    capsys.readouterr()
    assert compare(*flags) == (2, [])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"error: {message.format(compare.folder)}"), said
    assert (compare.folder / "results.jsonl").read_bytes() == before
    monkeypatch.setitem(compare.here, "git_commit", "abc")
    assert compare() == (0, []), "nothing is lost"
    assert compare("--baselines") == (0, []) and compare("--ablate", "wide: hidden_size=512") == (0, [("wide", 0)])


def test_a_line_that_was_cut_off_is_run_again_and_others_are_refused(compare, capsys):
    log = compare.folder / "results.jsonl"
    compare()
    whole = log.read_bytes()
    for cut in (1, 30, len(whole.splitlines()[1])):
        log.write_bytes(whole[:-cut])
        assert compare() == (0, [("stock_bert", 0)] if cut > 1 else []), "it lacks its end of line only"
        assert log.read_bytes() == whole
    for foreign in (b"[]\n", b'{"a": 1}\n', b"\xff\n", b"words", b'{"a": ', whole[:-30] + b"\n"):
        log.write_bytes(whole + foreign)
        capsys.readouterr()
        assert compare() == (2, [])
        said = capsys.readouterr().err
        assert re.fullmatch(r"error: output_dir: line [34] of .*results.jsonl is no result; give another .*\n", said)
        assert log.read_bytes() == whole + foreign
    log.write_bytes(whole)
    (compare.folder / "comparison.json").unlink()
    assert compare() == (2, []) and "comparison.json cannot be read" in capsys.readouterr().err


def test_what_was_tuned_in_the_folder_is_taken(asked, monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "TUNED", tmp_path / "none.yaml")
    entry = {"flags": {"size": "64x1"}, "finished": 12, "trials": 12, "hardware": "a GPU", "runs": []}
    monkeypatch.setattr(quality_at_budget.tune, "tune", lambda *given: entry)
    flags = [*asked, "--baselines", "stock_bert"]
    assert quality_at_budget.best_flags(quality_at_budget.parse(flags), "a GPU")["stock_bert"].flags == {}
    (tmp_path / "out").mkdir()
    tuned = quality_at_budget.best_flags(quality_at_budget.parse([*flags, "--tune", "12"]), "a GPU")
    assert tuned["stock_bert"].flags == {"size": "64x1"}
    assert quality_at_budget.best_flags(quality_at_budget.parse(flags), "a GPU") == tuned
    with pytest.raises(InputError, match="tuned.yaml has no expert_modernbert; give --tune"):
        quality_at_budget.best_flags(quality_at_budget.parse([*flags, "expert_modernbert"]), "a GPU")


def test_models_of_this_call_alone_are_fine_tuned(asked, monkeypatch, tmp_path):
    """A name that an earlier call has run keeps its row without a score; the folders of the data are absolute."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glue").mkdir()
    a = quality_at_budget.parse([*asked, "--downstream", "glue", "--baselines", "stock_bert"])
    commands = []

    def fine_tune(command, log):
        commands.append(command)
        score = {"median": 50.0, "min": 49.0, "max": 51.0}
        groups = {name: {"score": score} for name in ("cpu_10m", "stock_bert")}
        (tmp_path / "out" / "downstream").mkdir(parents=True)
        (tmp_path / "out" / "downstream" / "downstream.json").write_text(json.dumps({"groups": groups}))

    monkeypatch.setattr(quality_at_budget, "run_child", fine_tune)
    rows = [{"name": name} for name in ("cpu_10m", "earlier", "stock_bert")]
    jobs = quality_at_budget.plan(a, {"stock_bert": runs.Best({}, runs.NOT_TUNED)})
    quality_at_budget.score_downstream(a, jobs, rows)
    assert [row.get("downstream", {}).get("median") for row in rows] == [50.0, None, 50.0]
    assert str(tmp_path / "glue") in commands[0]
    assert [word.partition("=")[0] for word in commands[0][-2:]] == ["cpu_10m", "stock_bert"]


@pytest.mark.parametrize("words", [["scaling_point"], ["turns"], ["gpu_hour_runs", "stock"]], ids=" ".join)
def test_a_script_that_another_one_starts_says_what_it_wants(words):
    """By hand its --help is answered, and what is no order is refused in one line."""
    script, *kind = words
    command = [sys.executable, "-m", f"benchmarks.{script}"]
    assert "usage:" in run([*command, "--help"], ok=True).stdout
    for given in ([], ["3m"], ["[1]"]):
        refused = run([*command, *kind, *given])
        last = refused.stderr.strip().splitlines()[-1]
        assert refused.returncode == 2 and "Traceback" not in refused.stderr
        assert "error: " in last and (given[0] if given else "ORDER") in last

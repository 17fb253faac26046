"""benchmarks/gpu_hour.py: its plan, what it skips and goes on with, what it refuses, and a rehearsal of all of it."""

import contextlib
import json
import re
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_hour, gpu_hour_runs, throughput
from benchmarks.gpu_hour import Hour, Part, Stage
from benchmarks.workload import Workload
from budget_trainer import finetune_glue, train_mlm
from budget_trainer.budget.clock import BudgetClock
from budget_trainer.config.recipe import parse_recipe
from budget_trainer.core.command import StopRequest
from budget_trainer.core.errors import InputError
from budget_trainer.core.jobs import JobEnd, _last_error, run_jobs
from budget_trainer.glue.arguments import parse_request
from tests.conftest import ROOT, words


@pytest.fixture
def flags(data_dir, glue_dir, tmp_path):
    return {"data_dir": data_dir, "glue_dir": glue_dir, "output_dir": tmp_path / "out"}


@pytest.fixture
def make_hour(flags):
    """An Hour with what it checks at its beginning."""

    def call(*more, names=(), stages=None, **changes):
        given = ["--tiny", *more, *words({**flags, **changes})]
        hour = Hour(gpu_hour.parse(given), StopRequest())
        hour.stages |= stages or {}
        hour.check(list(names or stages or ()))
        hour.out.mkdir(exist_ok=True)
        return hour

    return call


def part(name, script, **options):
    """A run of a shell script in its folder, whose figure is in the file x."""

    def command(folder):
        return ["sh", "-c", f"cd {folder}; {script}"]

    def read(folder):
        return {"x": int((folder / "x").read_text())}

    return Part(**{"name": name, "asked": {}, "command": command, "read": read, "seconds": 0.0, **options})


def stage(*alone, side_by_side=()):
    def table(rows):
        return " ".join(f"{row['name']}:{row.get('x', row['error'])}" for row in rows)

    return {"check": Stage("about", 1, lambda hour: list(alone), lambda hour, rows: list(side_by_side), table)}


def read(hour):
    return json.loads((hour.out / "check.json").read_text())


def test_rows_failures_and_what_is_left_out(make_hour):
    broken = part("broken", "echo 'error: a | b' >&2; exit 3")
    unread = part("unread", "true")
    parts = [part("b", "echo 2 > x", left_out="not today"), broken, unread]
    hour = make_hour(stages=stage(*parts, side_by_side=[part("c", "echo 3 > x"), part("d", "echo 4 > x")]))
    assert hour.run("check") == (True, True)
    result = read(hour)
    assert result["complete"] and {"versions", "hardware", "git_commit", "stage"} <= set(result)
    rows = {row["name"]: row for row in result["rows"]}
    assert [row["status"] for row in rows.values()] == ["left out", "failed", "failed", "ok", "ok"]
    assert rows["broken"]["error"] == "a / b" and "No such file" in rows["unread"]["error"]
    assert rows["b"]["error"] == "not today" and rows["d"]["x"] == 4
    page = (hour.out / "gpu_hour.md").read_text()
    assert "b:not today broken:a / b" in page and page.count("## check") == 1 and "d:4\n" in page
    assert "not complete" not in page


def test_only_what_is_missing_is_run(make_hour, tmp_path):
    count = f"echo run >> {tmp_path}/count; echo 1 > x"

    def runs(*more, asked=1, script=count):
        ended = make_hour(*more, stages=stage(part("a", count), part("b", script, asked={"k": asked}))).run("check")
        seen = (tmp_path / "count").read_text().count("run")
        (tmp_path / "count").write_text("")
        return seen, ended

    assert runs() == (2, (True, False))
    assert runs() == (0, (True, False))
    assert runs(asked=2) == (1, (True, False))
    failing = f"{count}; exit 1"
    assert runs(asked=3, script=failing) == (1, (True, True))
    assert runs(asked=3, script=failing) == (0, (True, True))
    assert runs("--retry_failed", asked=3) == (1, (True, False))


def test_a_stage_ends_in_time_and_goes_on(make_hour):
    """Ended after 0.6 of a second; what does not fit into that is not begun, and what would follow waits."""
    parts = [part("a", "echo 1 > x"), part("b", "echo 2 > x; sleep 60"), part("c", "echo 3 > x")]
    begin = time.monotonic()
    hour = make_hour("--stage_minutes", "0.01", stages=stage(*parts, side_by_side=[part("d", "echo 4 > x")]))
    hour.stages["check"] = replace(hour.stages["check"], alone=lambda hour: [*parts, part("e", "true", seconds=600)])
    assert hour.run("check") == (False, False) and time.monotonic() - begin < 30
    assert [row["name"] for row in read(hour)["rows"]] == ["a"] and not read(hour)["complete"]
    assert "not complete" in (hour.out / "gpu_hour.md").read_text()
    parts[1] = part("b", "echo 2 > x")
    hour = make_hour(stages=stage(*parts, side_by_side=[part("d", "echo 4 > x")]))
    assert hour.run("check") == (True, False)
    assert [row.get("x") for row in read(hour)["rows"]] == [1, 2, 3, 4]


def test_a_run_needs_the_time_that_its_like_has_taken(make_hour):
    tasks = [part(name, "sleep 0.5; echo 1 > x", asked={"task": "RTE", "n": name}) for name in ("a", "b")]
    hour = make_hour("--stage_minutes", "0.015", "--side_by_side", "1", stages=stage(side_by_side=tasks))
    assert hour.run("check") == (False, False)
    assert [row["name"] for row in read(hour)["rows"]] == ["a"]


def test_weights_are_made_again_where_they_are_still_needed(make_hour):
    needed = [True]
    script = f"mkdir -p {gpu_hour.MODEL}; echo $$ > x"
    parts = stage(part("a", script, is_used_up=lambda rows: not needed[0]))

    def value():
        hour = make_hour(stages=parts)
        assert hour.run("check") == (True, False)
        return read(hour)["rows"][0]["x"], hour.out / "check" / "a" / gpu_hour.MODEL

    first, model = value()
    assert model.is_dir() and value()[0] == first
    model.rmdir()
    assert value()[0] != first
    model.rmdir()
    needed[0] = False
    value()
    assert not model.is_dir()
    tuned = part("b", "echo 1 > x", model=model)
    with pytest.raises(InputError, match="check starts from .*, which is not there; run eight_minutes first"):
        make_hour(stages=stage(side_by_side=[tuned])).run("check")


@pytest.mark.parametrize(("awaits", "status"), [(True, "ok"), (False, "failed")])
def test_a_training_that_lacks_only_its_evaluation_is_not_begun_anew(make_hour, monkeypatch, awaits, status):
    monkeypatch.setattr(gpu_hour.RunFolder, "awaits_evaluation", lambda self: awaits)
    hour = make_hour(stages=stage(part("a", "cp kept x", resumes=True)))
    (hour.out / "check" / "a").mkdir(parents=True)
    (hour.out / "check" / "a" / "kept").write_text("1")
    hour.run("check")
    assert read(hour)["rows"][0]["status"] == status


def test_results_of_other_data_or_damaged_ones_are_refused(make_hour):
    hour = make_hour(stages=stage(part("a", "echo 1 > x")))
    hour.run("check")
    path = hour.out / "check.json"
    path.write_text(json.dumps({**read(hour), "data": {"fingerprint": "x", "tiny": True}}))
    for text, message in ((path.read_text(), "is of other data"), ('{"rows": [', "cannot be read"), ("{}", "no rows")):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            hour.run("check")


@pytest.mark.parametrize(
    ("stages", "changes", "message"),
    [
        (["chek"], {}, "stages: 'chek' is none of all, check, "),
        ([], {}, "stages: none is given"),
        (["check"], {"stage_minutes": 0}, "stage_minutes: 0 is not above 0"),
        (["check"], {"side_by_side": -1}, "side_by_side: -1 is not above 0"),
        (["eight_minutes"], {"stage_minutes": 0.5}, "too short for gpu_8m of eight_minutes; give 0.6 or more"),
        (["all"], {"total_minutes": 0.1}, "total_minutes: 0.1 is too short for bf16 of check"),
        (["check", "--nonesuch"], {}, "command line: unrecognized arguments: --nonesuch"),
        (["check"], {"data_dir": None}, "data_dir: missing"),
        (["check"], {"data_dir": ROOT}, "no manifest.json"),
        (["check"], {"pairs_data_dir": "$same"}, "add_nsp: data folder"),
        (["glue_1"], {"glue_dir": None}, "glue_dir: missing; give folders that hold CoLA"),
        (["glue_1"], {"glue_dir": ROOT / "docs"}, "CoLA has no data"),
        (["glue_1"], {}, "which is not there; run eight_minutes first"),
        (["check"], {"factors": "nonesuch.yaml"}, "nonesuch.yaml"),
        (["check"], {"grid": "nonesuch.yaml"}, "nonesuch.yaml"),
        (["check"], {"output_dir": ROOT / "README.md"}, "is a file"),
    ],
)
def test_bad_input_is_one_line(flags, stages, changes, message, monkeypatch, capfd):
    monkeypatch.setenv("same", str(flags["data_dir"]))
    given = {key: value for key, value in {**flags, **changes}.items() if value is not None}
    assert gpu_hour.main([*stages, "--tiny", *words(given)]) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


@pytest.mark.skipif(gpu_hour.devices(use_cpu=False) != [None], reason="there is a GPU")
def test_without_a_gpu_only_a_rehearsal(flags, capfd):
    assert gpu_hour.main(["check", *words(flags)]) == 2
    assert "no CUDA device is visible here; give --tiny" in capfd.readouterr().err


def test_list_runs_nothing(tmp_path, capsys):
    assert gpu_hour.main(["--list", "--output_dir", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = re.findall(r"^(\w+)(?: \.\.\.)? +[\d.]+  ", gpu_hour.__doc__, re.M)
    assert [line.split()[0] for line in lines[: len(named)]] == named and len(lines) > len(named)
    assert not (tmp_path / "out").exists()


def script_of(command):
    """A command's script and the words behind it."""
    if "--module" in command:
        at = command.index("--module") + 1
        return f"{command[at].rpartition('.')[2]}.py", command[at + 1 :]
    at = next(place for place, word in enumerate(command) if word.endswith(".py"))
    return Path(command[at]).name, command[at + 1 :]


@pytest.fixture
def full_hour(flags, data_dir, tmp_path, monkeypatch):
    """The real sizes, with rows of a model of eight minutes and of trained variants; no GPU is asked for."""
    monkeypatch.setattr(gpu_hour, "devices", lambda use_cpu: ["0"])
    hour = Hour(gpu_hour.parse([*words({**flags, "pairs_data_dir": data_dir})]), StopRequest())
    monkeypatch.setattr(gpu_hour.DataFolder, "columns_for", lambda self, **flags: None)
    monkeypatch.setattr(gpu_hour, "draw_floor", lambda model, output_dir, seed: model)
    hour.check(list(hour.stages))
    hour.out.mkdir()
    return hour


def test_every_command_of_the_real_sizes_is_understood_and_fits(full_hour, tmp_path):
    hour, kinds = full_hour, {}
    for name in hour.stages:
        alone, _ = hour.parts(name, [])
        rows = [{"name": part.name, "status": "ok", "weights": "0", "asked": {}} for part in alone]
        side_by_side = hour.parts(name, rows)[1]
        assert sum(part.seconds for part in alone) <= 60 * 9 and hour.stages[name].minutes <= 9
        parts = [*alone, *side_by_side]
        assert parts and len({part.name for part in parts}) == len(parts)
        for number, one in enumerate(parts):
            folder = tmp_path / f"{name}-{number}"
            folder.mkdir()
            script, rest = script_of([str(word) for word in one.command(folder)])
            kinds.setdefault(script, []).append(rest)
            if script == "train_mlm.py":
                recipe = parse_recipe(rest)
                assert recipe.total_seconds in (120, 180, 480)
            elif script == "finetune_glue.py" and number < 12:
                request = parse_request(rest)
                assert not request.is_suite and request.run.bf16 and request.run.learning_rate <= 3e-4
            elif script == "throughput.py":
                assert throughput.parse(rest).names == ["ours_bf16_regional", "stock_bf16"]
            elif script == "gpu_hour_runs.py" and rest[0] == "stock":
                assert Workload(**json.loads(rest[1])["workload"]).tokens_per_step == 256 * 64
            elif script == "gpu_hour_runs.py":
                assert parse_recipe([*rest[4:], "--fp16", "false"]).total_seconds == 60
    assert {script: len(found) for script, found in kinds.items()} == {
        "gpu_hour_runs.py": 4 + 3,
        "throughput.py": 2,
        "train_mlm.py": 2 + 1 + len(hour.a.variants) + 0,
        "finetune_glue.py": 9 * (6 + 3) + 4 * (1 + len(hour.a.variants)),
    }


def test_a_stage_with_a_run_that_does_not_end_well_is_no_end_of_the_others(make_hour, flags, monkeypatch, capfd):
    """eight_minutes fails, so the stages behind it are refused, and what needs nothing of it is run all the same."""

    def fail(slots, next_job, stop):
        while (job := next_job()) is not None:
            job.log.write_text("error: no room\n")
            job.on_end(JobEnd(1, 1.0, None, "no room"))

    monkeypatch.setattr(gpu_hour, "run_jobs", fail)
    assert gpu_hour.main(["eight_minutes", "glue_1", "throughput", "--tiny", *words(flags)]) == 2
    out, error = capfd.readouterr()
    assert "error: stages: glue_1 starts from" in error and "throughput: complete; 1 runs, 1 failed" in out
    assert "| 1 x 32 | failed: no room |" in (flags["output_dir"] / "gpu_hour.md").read_text()


def test_stages_wait_where_the_time_is_over_before_their_weights_are_made(flags, monkeypatch):
    monkeypatch.setattr(gpu_hour, "run_jobs", lambda slots, next_job, stop: None)
    assert gpu_hour.main(["eight_minutes", "glue_1", "glue_3", "--tiny", *words(flags)]) == 85
    assert gpu_hour.main(["glue_3", "--tiny", *words(flags)]) == 2


# ---- the rehearsal ----


@pytest.fixture
def in_process(monkeypatch):
    """Commands in this process instead of one each, but for the first, which is launched; returns their names."""
    seen = []

    def call(command, log):
        script, rest = script_of(command)
        for module in (train_mlm, finetune_glue):
            monkeypatch.setattr(module, "CLOCK", BudgetClock())
        with open(log, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            if script == "gpu_hour_runs.py":
                return gpu_hour_runs._main(*rest, *(["--use_cpu", "true"] if rest[0] == "watch" else []))
            if script == "train_mlm.py":
                return train_mlm.main([*rest, "--use_cpu", "true"])
            return {"finetune_glue.py": finetune_glue, "throughput.py": throughput}[script].main(rest)

    def work(slots, next_job, stop):
        while (job := next_job()) is not None:
            seen.append(str(job.log.parent.relative_to(job.log.parents[2])))
            if len(seen) == 1:
                run_jobs(slots, partial(next, iter([job]), None), stop)
                continue
            begin = time.monotonic()
            code = call(list(job.command), job.log)
            job.on_end(JobEnd(code, time.monotonic() - begin, None, _last_error(job.log, code)))

    monkeypatch.setattr(gpu_hour, "run_jobs", work)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "none")
    return seen


@pytest.mark.slow
def test_a_rehearsal_of_all_stages(flags, in_process, monkeypatch):
    variants = flags["output_dir"].parent / "factors.yaml"
    variants.write_text("adamw: {optimizer_type: adamw, muon_learning_rate: null}\npairs: {add_nsp: true}\n")
    command = ["all", "--tiny", *words({**flags, "factors": variants})]
    assert gpu_hour.main(command) == 1  # fp16 wants a GPU
    out, stages = flags["output_dir"], {}
    for path in sorted(out.glob("*.json")):
        content = json.loads(path.read_text())
        assert content["complete"], path
        stages[content["stage"]] = content["rows"]
    assert len(stages) == 9
    status = {f"{stage}: {row['name']}": row["status"] for stage, rows in stages.items() for row in rows}
    assert {name: how for name, how in status.items() if how != "ok"} == {
        "check: fp16": "failed",
        "factors_1: pairs": "left out",
    }, [row for rows in stages.values() for row in rows]
    assert stages["check"][0]["watched_steps"] == 8 and not stages["check"][0]["on_gpu"]
    assert len(stages["factors_1"]) == 3 + 2 * 2 and len(stages["glue_1"]) == len(stages["glue_3"]) == 2
    page = (out / "gpu_hour.md").read_text()
    assert page.count("## ") == 9 and "| stock, 5e-4 |" in page and "| random weights | MNLI, accuracy | 2 |" in page
    assert (out / "eight_minutes" / "gpu_8m" / gpu_hour.MODEL).is_dir()
    assert not list(out.glob(f"factors_1/*/{gpu_hour.MODEL}"))
    before = list(in_process)
    assert gpu_hour.main(command) == 1 and in_process == before, "all is there"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_syncs_are_counted_between_two_steps(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    syncs = gpu_hour_runs._Syncs(2, 4)
    for done in range(6):
        syncs.step_begins(done)
        warnings.warn_explicit("called a synchronizing CUDA operation", UserWarning, "/a/b/c.py", 7)
        warnings.warn_explicit("something else", UserWarning, "/a/b/c.py", 8)
        assert modes == [["warn"] * (done > 1), ["warn", "default"]][done > 3]
    syncs.stop()
    assert syncs.steps == 2 and dict(syncs.places) == {"b/c.py:7": 2}

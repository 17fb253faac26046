"""benchmarks/downstream.py: what is chosen, made of it and refused, on fake runs; and a real one of tiny models."""

import json
import os
import re
import shutil
from pathlib import Path

import psutil
import pytest
import yaml
from transformers import AutoModelForMaskedLM

from benchmarks import board, downstream
from budget_trainer.core.command import StopRequest
from budget_trainer.core.jobs import JobEnd
from tests.conftest import ROOT, words
from tests.test_board import COMMAND, report, use_repository

PROTOCOL = ROOT / "recipes" / "glue" / "downstream.yaml"
TINY = {"max_seq_length": 32, "num_train_epochs": 1, "per_device_train_batch_size": 8}


@pytest.fixture
def other_model(tiny_model, tmp_path):
    """The same architecture and tokenizer with other weights."""
    folder = shutil.copytree(tiny_model, tmp_path / "other")
    model = AutoModelForMaskedLM.from_pretrained(folder)
    model.get_input_embeddings().weight.data.add_(0.01)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def bench(tiny_model, glue_dir, tmp_path, capfd):
    """downstream.main with changed flags: its exit code, its one line of error, its figures where it has written some."""
    given = {"glue_dir": glue_dir, "output_dir": tmp_path / "out"}

    def call(*checkpoints, code=0, **changes):
        flags = {key: value for key, value in {**given, **changes}.items() if value is not None}
        bare = [f"--{key}" for key, value in flags.items() if value is True]
        line = words({key: value for key, value in flags.items() if value is not True})
        ended = downstream.main([*map(str, checkpoints or [tiny_model]), *line, *bare])
        captured = capfd.readouterr()
        assert ended == code, captured.err
        errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        return errors[0] if code else (json.loads((tmp_path / "out" / "downstream.json").read_text()), captured.out)

    return call


@pytest.fixture
def fake_runs(monkeypatch):
    """Runs that end at once with `score(task, rate, seed, model)`, None for one that fails; what was run, in order."""
    done = []

    def install(score):
        def run_jobs(slots, next_job, stop):
            while (job := next_job()) is not None:
                flags = dict(word[2:].split("=", 1) for word in job.command if re.match("--.*=", word))
                flags |= {
                    name[2:]: job.command[place + 1]
                    for place, name in enumerate(job.command)
                    if name[:2] == "--" and "=" not in name
                }
                asked = (
                    flags["task_name"],
                    flags["learning_rate"],
                    int(flags["seed"]),
                    Path(flags["model_name_or_path"]),
                )
                done.append(asked)
                if (value := score(*asked)) is not None:
                    result = {"format": 1, "headline": {"value": value}, "predictions": {}, "seconds": {"total": 2.0}}
                    (job.log.parent / "result.json").write_text(json.dumps(result))
                job.on_end(JobEnd(int(value is None), 2.0, None, "loss is nan"))

        monkeypatch.setattr(downstream, "run_jobs", run_jobs)
        return done

    return install


RATES = {"5e-5": 0.3, "1e-4": 0.5, "3e-4": 0.6}
TASKS = {"STS-B": 0.0, "SST-2": 0.1, "MNLI": 0.2}


def plain(task, rate, seed, model):
    """STS-B is best at 3e-4, the others at 1e-4; a seed more is a point more. Random weights are 0.2 lower."""
    value = RATES[rate] if task == "STS-B" or rate != "3e-4" else 0.4
    return TASKS.get(task, 0.0) + value + seed / 100 - (0.2 if "random_weights" in model.parts else 0)


def test_all_rates_with_the_first_seed_then_the_others_at_the_best(bench, fake_runs, tiny_model):
    done = fake_runs(plain)
    figures, printed = bench(no_floor=True)
    assert (
        len(done) == 15 and {seed for *_, seed, _ in done[:9]} == {1} and {seed for *_, seed, _ in done[9:]} == {2, 3}
    )
    best = {(task, rate) for task, rate, seed, _ in done[9:]}
    assert best == {("STS-B", "3e-4"), ("SST-2", "1e-4"), ("MNLI", "1e-4")}
    (found,) = figures["checkpoints"].values()
    tasks, score = found["tasks"], found["score"]
    assert {name: round(task["median"], 6) for name, task in tasks.items()} == {"STS-B": 62, "SST-2": 62, "MNLI": 72}
    assert tasks["STS-B"]["rates"] == pytest.approx({"5e-5": 31, "1e-4": 51, "3e-4": 61})
    assert [tasks[name]["ordinary_share"] for name in TASKS] == pytest.approx([51 / 61, 1, 1])
    assert [score[name] for name in ("median", "min", "max")] == pytest.approx([196 / 3, 193 / 3, 199 / 3])
    assert score["floor"] is None and not figures["random_weights"] and not figures["groups"]
    assert "| STS-B | 31.0 | 51.0 | 61.0 | 3e-4 | 62.0 (61.0 to 63.0) |  |  |  | 84 % |" in printed
    assert f"| {tiny_model} | mean of SST-2, STS-B, MNLI |  |  |  |  | **65.3** (64.3 to 66.3) |" in printed
    assert (Path(figures["asked"]["output_dir"]) / "downstream.md").read_text() in printed


def test_the_floor_is_one_for_an_architecture_and_its_gain_is_held_against_the_seeds(
    bench, fake_runs, tiny_model, other_model, tmp_path
):
    done = fake_runs(plain)
    figures, printed = bench(f"mine={tiny_model},{other_model}", floor_seed=1)  # the model was drawn with 0
    assert len(done) == 45, "two models and one floor"
    (folder,) = (tmp_path / "out" / "random_weights").iterdir()
    weights = [(path / "model.safetensors").read_bytes() for path in (tiny_model, folder)]
    assert len(weights[0]) == len(weights[1]) and weights[0] != weights[1]
    for found in figures["checkpoints"].values():
        assert found["group"] == "mine" and found["random_weights"] in figures["random_weights"]
        assert found["score"]["gain"] == pytest.approx(20) and found["score"]["above_seeds"] is True
        assert {task["above_seeds"] for task in found["tasks"].values()} == {True}
    group = figures["groups"]["mine"]
    assert group["checkpoints"] == [str(tiny_model), str(other_model)]
    assert group["score"]["median"] == pytest.approx(196 / 3) and group["score"]["gain"] == pytest.approx(20)
    assert "| mine, 2 checkpoints | STS-B |" in printed and f"| random weights of {tiny_model} | STS-B |" in printed


@pytest.mark.parametrize(
    ("ours", "floor", "holds"),
    [
        ((20, 24, 22), (10, 18, 28), False),  # 4 above, and the floor's seeds are 18 apart
        ((20, 21, 22), (18, 19, 20), False),  # exactly the spread
        ((20, 21, 22.5), (18, 18, 18), True),
        ((10, 10, 10), (20, 20, 20), False),
    ],
)
def test_what_is_not_above_the_floor_by_more_than_the_seeds_is_not_above(ours, floor, holds):
    found = downstream.above(downstream.spread(ours), downstream.spread(floor))
    assert found["above_seeds"] is holds


def test_what_is_finished_is_not_run_again_and_more_goes_on(bench, fake_runs, tiny_model, other_model):
    done = fake_runs(plain)
    first, _ = bench(no_floor=True)
    done.clear()
    assert bench(no_floor=True)[0]["checkpoints"] == first["checkpoints"] and not done
    more, _ = bench(no_floor=True, seeds=5, tasks="cola,STS-B")
    assert sorted({seed for *_, seed, _ in done}) == [1, 2, 3, 4, 5]
    assert len(done) == 3 * 2 + 3 + 4, "two seeds of each judged task; CoLA with all"
    (before,), (after,) = first["checkpoints"].values(), more["checkpoints"].values()
    assert after["tasks"]["STS-B"]["median"] == pytest.approx(63) and before["tasks"]["STS-B"][
        "median"
    ] == pytest.approx(62)
    assert after["tasks"]["CoLA"] and after["score"]["median"] == pytest.approx(199 / 3), "CoLA is only printed"
    done.clear()
    both, _ = bench(tiny_model, other_model, no_floor=True)
    assert list(both["checkpoints"]) == [str(tiny_model), str(other_model)] and len(done) == 15


def test_rates_of_the_command_line_are_the_grid(bench, fake_runs):
    done = fake_runs(lambda task, rate, seed, model: 0.5 - abs(float(rate) - 2e-5))
    figures, printed = bench(
        no_floor=True, rates="2e-5,1e-3", protocol=ROOT / "recipes" / "glue" / "cpu.yaml", seeds=2
    )
    assert {rate for _, rate, *_ in done} == {"2e-5", "1e-3"} and len(done) == 9
    (found,) = figures["checkpoints"].values()
    assert {task["best_rate"] for task in found["tasks"].values()} == {"2e-5"} and "| 2e-5 | 1e-3 |" in printed


def test_a_rate_that_fails_is_not_the_best_and_a_task_or_seed_that_fails_is_an_error(bench, fake_runs, tmp_path):
    fake_runs(lambda *asked: None if asked[1] == "3e-4" else plain(*asked))
    figures, printed = bench(no_floor=True)
    assert (
        len(figures["failed"]) == 3
        and "STS-B at 3e-4, seed 1, failed: loss is nan; all of it in" in figures["failed"][0] + printed
    )
    (found,) = figures["checkpoints"].values()
    assert found["tasks"]["STS-B"]["best_rate"] == "1e-4" and "| 31.0 | 51.0 | failed | 1e-4 |" in printed
    fake_runs(lambda *asked: None if asked[0] == "MNLI" else plain(*asked))
    error = bench(no_floor=True, output_dir=tmp_path / "second", code=2)
    assert "MNLI failed at every rate: failed: loss is nan; all of it in" in error
    fake_runs(lambda *asked: None if asked[2] == 3 else plain(*asked))
    assert ", seed 3, failed: loss is nan" in bench(no_floor=True, output_dir=tmp_path / "third", code=2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"checkpoints": "/nowhere"}, "checkpoints: '/nowhere' is not a folder"),
        ({"checkpoints": "a=/nowhere,/there"}, "checkpoints: '/nowhere' is not a folder"),
        ({"checkpoints": ROOT / "recipes"}, "recipes has no config.json"),
        ({"checkpoints": "=x"}, "checkpoints: =x: '' is no name of its own; write NAME=DIR,DIR"),
        ({"judged": "QNLI"}, "QNLI has no data for it (QNLI/train.tsv is not in"),
        ({"tasks": "QQP"}, "glue_dir: QQP cannot be run (do_train: QQP has no data for it"),
        ({"judged": "sttb"}, "did you mean STS-B?"),
        ({"glue_dir": "/nowhere"}, "glue_dir: /nowhere is not a folder"),
        (
            {"protocol": "/nowhere.yaml"},
            "protocol: /nowhere.yaml is not a file; give one as recipes/glue/downstream.yaml",
        ),
        (
            {"protocol": ROOT / "recipes/glue/cpu.yaml"},
            "has one rate, 1e-4, which may suit no model; give --rates 5e-5,",
        ),
        ({"protocol": ROOT / "recipes/glue/paper.yaml"}, "has more than learning_rate; put the rest under flags"),
        ({"rates": "1e-4"}, "has one rate, 1e-4"),
        ({"rates": "1e-4,0"}, "rates: '1e-4,0' are not different numbers above 0; write 5e-5,1e-4,3e-4"),
        ({"rates": "1e-4,0.0001"}, "rates: '1e-4,0.0001' are not different numbers"),
        ({"rates": "a,b"}, "rates: 'a,b' are not different numbers"),
        ({"seeds": 1}, "seeds: 1 has no spread; give --seeds 3"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(bench, fake_runs, tmp_path, changes, expected):
    done, checkpoints = fake_runs(plain), [changes.pop("checkpoints")] if "checkpoints" in changes else []
    error = bench(*checkpoints, code=2, **changes)
    assert expected in error and not done and not (tmp_path / "out").exists(), error


def test_the_same_model_twice_and_a_name_twice_are_refused(bench, tiny_model, other_model, tmp_path):
    twin = shutil.copytree(tiny_model, tmp_path / "twin")
    assert "twin holds the same model as" in bench(tiny_model, twin, code=2)
    assert "'a' is no name of its own" in bench(f"a={tiny_model}", f"a={other_model}", code=2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rates": "5e-5,1e-4"}, ": flags); give another folder"),
        (
            {"judged": "SST-2,STS-B"},
            "has another protocol (judged ['SST-2', 'STS-B', 'MNLI'], here ['SST-2', 'STS-B'])",
        ),
        ({"floor_seed": 1}, "has another protocol (floor_seed 0, here 1)"),
    ],
)
def test_another_protocol_in_the_same_folder_is_refused(bench, fake_runs, changes, expected):
    done = fake_runs(plain)
    bench(no_floor=True)
    done.clear()
    assert expected in bench(no_floor=True, code=2, **changes) and not done


def test_another_model_under_the_same_path_and_damaged_notes_are_refused(
    bench, fake_runs, tiny_model, other_model, tmp_path
):
    fake_runs(plain)
    path = shutil.copytree(tiny_model, tmp_path / "model")
    bench(path, no_floor=True)
    shutil.copy(other_model / "model.safetensors", path)
    assert "model held another model when it was measured there; give another folder" in bench(
        path, no_floor=True, code=2
    )
    (tmp_path / "out" / downstream.CLAIM).write_text("{")
    assert "cannot be read" in bench(no_floor=True, code=2)


@pytest.mark.parametrize(
    ("gpus", "cores", "expected"),
    [([None], {3, 1}, [1, 3]), (["0", "1"], {1}, ["0", "1"]), ([None], None, [None])],
)
def test_a_run_has_a_gpu_or_a_core_or_what_there_is(monkeypatch, gpus, cores, expected):
    monkeypatch.setattr(downstream, "devices", lambda use_cpu: gpus)
    if cores is None:
        monkeypatch.delattr(os, "sched_getaffinity")
    else:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores)
    assert downstream.slots_here() == expected


def test_its_scores_go_to_the_board_with_the_model_they_were_measured_on(
    bench, fake_runs, tiny_model, other_model, tmp_path, monkeypatch, capfd
):
    fake_runs(plain)
    bench(no_floor=True)
    commit, run = use_repository(tmp_path / "repository", monkeypatch), tmp_path / "run"
    shutil.copytree(tiny_model, run / "final")
    (run / "run_report.json").write_text(json.dumps(report(commit)))
    flags = {"track": "cpu_3m", "command": COMMAND, "downstream": tmp_path / "out" / "downstream.json"}
    assert board.main(["add", str(run), *words(flags)]) == 0
    assert "| 1.500 | 62.0 | 62.0 | 72.0 |" in board.PAGE.read_text()
    (added,) = board.read_results().values()
    assert set(added["protocol"]["MNLI"]) == {"data_sha256", "flags"}
    shutil.copy(other_model / "model.safetensors", run / "final")
    assert board.main(["add", str(run), *words({**flags, "name": "other"})]) == 2
    assert f"has no scores of {run}/final; run downstream.py with it" in capfd.readouterr().err


@pytest.mark.slow
def test_a_real_measurement_and_the_same_again_without_training(bench, tiny_model, tmp_path, monkeypatch):
    protocol = tmp_path / "protocol.yaml"
    protocol.write_text(yaml.safe_dump({"seeds": [1, 2], "flags": TINY, "grid": {"learning_rate": ["1e-4", "1e-2"]}}))
    given = {"protocol": protocol, "judged": "SST-2", "floor_seed": 1}

    def files():
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}

    figures, _ = bench(**given)
    before = files()
    assert len(before) == 6, "two rates and a second seed, of the model and of its random weights"
    (found,), (floor,) = figures["checkpoints"].values(), figures["random_weights"].values()
    assert set(found["tasks"]["SST-2"]["seeds"]) == {"1", "2"} and found["score"]["floor"] == floor["score"]["median"]
    assert bench(**given)[0]["checkpoints"] == figures["checkpoints"] and files() == before
    monkeypatch.setattr(StopRequest, "listen", lambda stop: stop.ask())
    assert "a request; repeat the command to go on" in bench(**given, tasks="CoLA", code=2)
    lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in lines if str(tmp_path) in line] and files() == before

"""The baselines train as they say, what they cannot do they refuse in one line, and their tuning goes on where it was ended."""

import json
import operator
import re
import subprocess
import sys
from argparse import Namespace
from itertools import islice

import pytest
import torch
import yaml
from transformers import AutoModelForMaskedLM

from benchmarks import quality_at_budget, texts
from benchmarks.baselines import command, expert_modernbert, runs, scorer, stock_bert, tune
from budget_trainer.budget.clock import format_duration
from budget_trainer.config.parser import yaml_typed
from budget_trainer.core.errors import InputError, RunError
from budget_trainer.sweep.spec import SweepSpec
from tests.conftest import ROOT, read_documents, words

SCRIPTS = {"stock_bert": stock_bert, "expert_modernbert": expert_modernbert}


@pytest.fixture(autouse=True)
def no_cache_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def given(corpus, tokenizer, tmp_path):
    """Flags of a tiny run of either script."""
    flags = {"text": corpus, "tokenizer": tokenizer, "output_dir": tmp_path / "run"}
    return {**flags, "total_training_time": "3s", "size": "64x1", "batch_size": 4}


@pytest.fixture
def load(tokenizer):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer)


@pytest.fixture
def expert(given):
    """Parsed flags of expert_modernbert.py, not compiled."""

    def parsed(**more):
        return expert_modernbert.parse_flags(words({**given, "compile": "false", **more}))

    return parsed


def test_the_experts_blocks_hold_the_text(corpus, load):
    blocks = expert_modernbert.read_blocks(str(corpus), load)
    lines = [line.strip() for line in corpus.read_text().splitlines() if line.strip()]
    rows = load(lines, add_special_tokens=False)["input_ids"]
    expected = [token for row in rows for token in (*row, load.sep_token_id)]
    assert blocks.shape == (len(expected) // 126, 128) and blocks.dtype == torch.int32
    assert (blocks[:, 0] == load.cls_token_id).all() and (blocks[:, -1] == load.sep_token_id).all()
    assert blocks[:, 1:-1].flatten().tolist() == expected[: len(blocks) * 126]


def test_the_experts_batches(corpus, load):
    blocks = expert_modernbert.read_blocks(str(corpus), load)
    made = [*islice(expert_modernbert.batches(blocks, 8, load, seed=0), 2 * (len(blocks) // 8))]
    masked = kept = 0
    for inputs, labels in made:
        on = labels != -100
        assert (on.sum(1) == expert_modernbert.TARGETS).all(), "as many in each block"
        assert not torch.isin(labels[on], torch.tensor(load.all_special_ids)).any()
        masked += (inputs[on] == load.mask_token_id).sum().item()
        kept += (inputs[on] == labels[on]).sum().item()
    count = sum((labels != -100).sum().item() for _, labels in made)
    assert masked / count == pytest.approx(0.8, abs=0.03) and kept / count == pytest.approx(0.1, abs=0.03)
    originals = sorted(torch.where(labels == -100, inputs, labels)[0].tolist() for inputs, labels in made)
    assert all(row in blocks.tolist() for row in originals)
    again = next(expert_modernbert.batches(blocks, 8, load, seed=0))
    assert torch.equal(again[0], made[0][0]) and torch.equal(again[1], made[0][1])


def test_the_experts_model(expert, load):
    model = expert_modernbert.build_model(expert(size="128x2"), load, "cpu")
    assert type(model).__name__ == "ModernBertForMaskedLM" and model.training and model.sparse_prediction
    assert not [module for module in model.modules() if isinstance(module, torch.nn.Dropout) and module.p > 0]
    assert {module.sliding_window for module in model.modules() if hasattr(module, "sliding_window")} == {None}
    assert model.config._attn_implementation == "sdpa" and model.config.num_attention_heads == 2


def test_the_experts_accumulation_is_the_larger_batch(corpus, expert, load):
    a = expert()
    model = expert_modernbert.build_model(a, load, "cpu")
    inputs, labels = next(expert_modernbert.batches(expert_modernbert.read_blocks(str(corpus), load), 8, load, seed=0))

    def gradients(parts):
        model.zero_grad()
        for rows in torch.arange(8).split(8 // parts):
            targets = 8 * expert_modernbert.TARGETS
            model(input_ids=inputs[rows], labels=labels[rows], num_items_in_batch=targets).loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    whole, parts = gradients(1), gradients(4)
    assert torch.allclose(whole, parts, rtol=1e-3, atol=1e-6) and whole.norm() > 0
    model.zero_grad()
    model(input_ids=inputs, labels=labels).loss.backward()
    mean = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert torch.allclose(whole, mean, rtol=1e-3, atol=1e-6), "the mean over the targets"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_experts_optimizers_have_every_parameter_once(expert, load, optimizer):
    a = expert(optimizer=optimizer)
    model = expert_modernbert.build_model(a, load, "cpu")
    made = expert_modernbert.build_optimizers(a, model)
    held = [parameter for one in made for group in one.param_groups for parameter in group["params"]]
    assert len(held) == len(set(map(id, held))) and {*map(id, held)} == {*map(id, model.parameters())}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if optimizer == "muon":
        muon = {names[id(parameter)] for parameter in made[0].param_groups[0]["params"]}
        assert "model.layers.0.attn.Wqkv.weight" in muon and not any("embed" in name for name in muon)
    assert all(group["weight_decay"] == 0 for group in made[-1].param_groups if group["params"][0].ndim < 2)


def test_the_experts_rate_follows_the_time_and_ends_inside_it(expert, load, corpus, monkeypatch):
    """A fake clock on which each batch takes a second, the first one, which compiles, three; ten seconds in all."""
    now, rates, held = [100.0], [], []
    a = expert(total_training_time="10s", learning_rate=1e-3)
    build = expert_modernbert.build_optimizers
    monkeypatch.setattr(expert_modernbert, "WARMUP", 0.25)
    monkeypatch.setattr(expert_modernbert, "build_optimizers", lambda *given: held.append(build(*given)) or held[0])
    monkeypatch.setattr(expert_modernbert.time, "monotonic", lambda: now[0])

    def data():
        for batch in expert_modernbert.batches(expert_modernbert.read_blocks(str(corpus), load), 4, load, seed=0):
            now[0] += 1 if rates else 3
            rates.append(held[0][0].param_groups[0]["lr"])
            yield batch

    model = expert_modernbert.build_model(a, load, "cpu")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    steps, seconds = expert_modernbert.train(a, model, data())
    assert (steps, seconds) == (7, 9.0), "another one would end at ten"
    shares = [0.0, *(second / 7 for second in range(6))]
    expected = [1e-3 * min(share / 0.25, (1 - share) / 0.75) for share in shares]
    assert rates == pytest.approx(expected)
    assert all((one != other).any() for one, other in zip(before, model.parameters(), strict=True) if one.ndim == 2)


def test_a_time_limit_ends_before_a_step_that_would_be_late(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stock_bert.time, "monotonic", lambda: now[0])
    for seconds, least, expected in ((10.0, 1, 5), (1.0, 3, 3), (1.0, 1, 1)):
        limit, control, steps = stock_bert.TimeLimit(seconds, least), Namespace(should_training_stop=False), 0
        limit.on_train_begin(None, None, control)
        while not control.should_training_stop:
            now[0] += 2.0
            steps += 1
            limit.on_step_end(None, None, control)
        assert steps == expected
        assert limit.ends == [2.0 * step for step in range(1, steps + 1)]


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"size": "100x2"}, "size: '100x2' is not width x layers"),
        ({"size": "256"}, "size: '256' is not"),
        ({"batch_size": 0}, "batch_size: 0 is below 1"),
        ({"batch_size": "many"}, "argument --batch_size: invalid int value"),
        ({"batch_size": 100_000}, "text: .* blocks of 128 tokens, and a batch has 100000; give more text"),
        ({"learning_rate": "nan"}, "learning_rate: nan is not above 0"),
        ({"total_training_time": "5"}, "total_training_time: '5' has no unit"),
        ({"text": "nonesuch"}, "text: nonesuch does not exist"),
        ({"rate": 1}, "unrecognized arguments: --rate"),
    ],
    ids=lambda value: "-".join(f"{key}-{given}" for key, given in value.items()) if isinstance(value, dict) else "",
)
def test_bad_input_is_one_line(script, more, message, given, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        script.main(words({**given, **more}))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert ended.value.code == 2 and len(lines) == 1
    assert re.search(message, lines[0]), lines[0]
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("text", ["", "\n \n", "A few words only.\n"])
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_a_text_without_a_block_is_refused(script, text, given, capsys, tmp_path):
    (tmp_path / "short.txt").write_text(text)
    with pytest.raises(SystemExit):
        script.main(words({**given, "text": tmp_path / "short.txt"}))
    assert "gives 0 blocks of 128 tokens, and a batch has 4" in capsys.readouterr().err


def test_accumulation_is_counted(given, capsys):
    with pytest.raises(SystemExit):
        expert_modernbert.main(words({**given, "accumulation": 0}))
    assert "accumulation: 0 is below 1; give 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "pays"), [(30, False), (60, True)])
def test_compiling_pays_where_more_steps_fit_into_the_time(expert, load, monkeypatch, seconds, pays):
    """A step takes a second; compiled, the first one 20 and each other one half a second."""
    a, built = expert(total_training_time=f"{seconds}s"), []
    monkeypatch.setattr(
        expert_modernbert, "build_model", lambda a, tokenizer, device, compiled: built.append(compiled)
    )

    def train(a, model, data, most):
        return most, (20.0 if most == 1 else most / 2) if built[-1] else float(most)

    monkeypatch.setattr(expert_modernbert, "train", train)
    blocks = torch.zeros((8, 128), dtype=torch.int32)
    assert expert_modernbert.compiling_pays(a, load, blocks, "cpu") is pays and built == [False, True]


def test_the_expert_takes_a_given_number_of_steps(expert, load, corpus):
    a = expert(total_training_time="10m")
    model = expert_modernbert.build_model(a, load, "cpu")
    data = expert_modernbert.batches(expert_modernbert.read_blocks(str(corpus), load), 4, load, seed=0)
    assert expert_modernbert.train(a, model, data, 2)[0] == 2


def test_what_runs_apart_answers_or_fails_there():
    assert command.apart(operator.add, 2, 3) == 5
    assert command.apart(operator.truediv, 1, 0) is None


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [None, "/nonesuch"])
def test_without_a_compiler_nothing_is_compiled(expert, load, corpus, monkeypatch, compiler):
    if compiler:
        monkeypatch.setenv("CXX", compiler)
    blocks = expert_modernbert.read_blocks(str(corpus), load)[:40].clone()
    found = command.apart(expert_modernbert.compiling_pays, expert(total_training_time="10m"), load, blocks, "cpu")
    assert found is None if compiler else found in (True, False)


@pytest.mark.parametrize("module", ["baselines.stock_bert", "baselines.expert_modernbert", "baselines.scorer"])
def test_a_missing_package_is_one_line(module):
    missing = "accelerate" if module.endswith("stock_bert") else "torch"
    code = f"import sys; sys.modules['{missing}'] = None; import benchmarks.{module}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {missing}: cannot be imported") and done.stderr.count("\n") == 1


def test_a_held_out_text_without_a_block_is_refused(given, capsys, tmp_path, load):
    expert_folder = tmp_path / "model"
    expert_modernbert.build_model(
        expert_modernbert.parse_flags(words({**given, "compile": "false"})), load, "cpu"
    ).save_pretrained(expert_folder)
    load.save_pretrained(expert_folder)
    (tmp_path / "short.txt").write_text("Two words.\n")
    for folder, text, message in (
        (expert_folder, tmp_path / "short.txt", "gives no block of 16 tokens or more"),
        (expert_folder, tmp_path / "nonesuch", "is not a file"),
        (tmp_path / "nonesuch", tmp_path / "short.txt", "holds no config.json"),
    ):
        with pytest.raises(SystemExit):
            scorer.main(["--model", str(folder), "--text", str(text)])
        assert message in capsys.readouterr().err


def test_bytes_of_tokens():
    """White space belongs to no token, and a character that two tokens share to the first one."""
    assert scorer.bytes_of_tokens("ab c\u00e9", [(0, 2), (2, 4), (4, 5), (4, 5)]) == [2, 1, 2, 0]


@pytest.mark.parametrize("name", runs.NAMES)
def test_what_is_searched_is_taken_by_the_script(name, given, tmp_path):
    baseline = runs.Baseline.named(name)
    own = {"time_per_trial": "5m", "output_dir": str(tmp_path), "fixed": baseline.fixed}
    spec = SweepSpec.read({**baseline.sweep, **own}, name)
    assert {"learning_rate", "size", "batch_size"} <= spec.parameters.keys()
    assert spec.limit >= tune.LEAST_TRIALS and not spec.prune_at
    data = {key: given[key] for key in ("text", "tokenizer", "output_dir")}
    parse, first = SCRIPTS[baseline.script].parse_flags, yaml_typed(baseline.first)
    plain = words({**data, "total_training_time": "5m"})
    assert parse([*plain, *words(baseline.first)]) == parse(plain), "the first trial has the defaults"
    assert first.keys() == spec.parameters.keys()
    for key, searched in spec.parameters.items():
        inside = first[key] in searched.choices if hasattr(searched, "choices") else first[key] < searched.high
        assert inside, key
    assert max(spec.parameters["batch_size"].choices) == quality_at_budget.LARGEST_BATCH
    for parameters in spec.probes():
        more = [word for word in spec.words(parameters, 0) if not word.startswith("--output_dir")]
        a = SCRIPTS[baseline.script].parse_flags([*more, *words(data)])
        assert a.seconds == 300 and all(str(getattr(a, key)) == value for key, value in baseline.fixed.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("stock_bert", ["--bf16=true"]),
        ("expert_modernbert", ["--compile=false", "--accumulation=2"]),
        ("expert_modernbert_muon", ["--optimizer=muon", "--compile=true", "--total_training_time=20s"]),
    ],
)
def test_a_baseline_trains_and_is_scored(name, more, given, corpus, tmp_path):
    flags = words({key: value for key, value in given.items() if key != "output_dir"})
    folder = tmp_path / "run"
    found = runs.Baseline.named(name).run([*flags, *more], folder, str(corpus), 50)
    own = {"stock_bert": {"planned_steps", "last_learning_rate"}}.get(name, {"compiled"})
    assert {"steps", "used_seconds", "tokens_per_second", *runs.SCORES, *own} == set(found)
    if name == "stock_bert":
        assert found["planned_steps"] >= found["steps"] and 0 <= found["last_learning_rate"] <= 1e-3
    else:
        assert found["compiled"] is ("--compile=true" in more)
    blocks = 8 if "--accumulation=2" in more else 4
    assert found["tokens_per_second"] == pytest.approx(found["steps"] * blocks * 128 / found["used_seconds"])
    assert found["steps"] >= 1 and 0 < found["loss"] < 10
    model = AutoModelForMaskedLM.from_pretrained(folder)
    assert model.config.model_type == found["model_type"] == {"s": "bert", "e": "modernbert"}[name[0]]
    assert not [name for name in model.state_dict() if "_orig_mod" in name]


# ---- tuning ----


def test_the_nearest_budget_is_taken_and_another_format_refused(tmp_path):
    file = tmp_path / "tuned.yaml"
    here = "2 cores of a CPU"
    assert runs.best_of("expert_modernbert_muon", 300, file, here) == runs.Best({"optimizer": "muon"}, "not tuned")
    tried = [{"flags": {"size": "128x2"}, "bits_per_byte": 2.0 + 0.1 * number} for number in range(5)]
    entry = {"finished": 12, "trials": 13, "hardware": here, "runs": tried}
    runs.record(file, "expert_modernbert_muon", 300, {"flags": {"size": "128x2", "learning_rate": 1e-3}, **entry})
    runs.record(file, "expert_modernbert_muon", 600, {"flags": {"size": "256x4"}, **entry})
    runs.record(file, "stock_bert", 600, {"flags": {"size": "192x3"}, **entry})
    assert list(yaml.safe_load(file.read_text())["expert_modernbert_muon"]) == ["5m", "10m"]
    for seconds, budget, size in ((60, "5m", "128x2"), (400, "5m", "128x2"), (450, "10m", "256x4")):
        best = runs.best_of("expert_modernbert_muon", seconds, file, here)
        assert best.flags["size"] == size and best.flags["optimizer"] == "muon" and best.trials == tried[:3]
        other = f"; that budget is not this one, {format_duration(seconds)}"
        assert best.told == f"tuned: 12 of 13 trials of {budget} finished ({here}){other}"
    assert runs.best_of("stock_bert", 600, file, "a GPU").told.endswith("CPU); that hardware is not this one, a GPU")
    assert runs.best_of("stock_bert", 600, file, here).told.endswith("finished (2 cores of a CPU)")
    runs.record(file, "stock_bert", 60, {**entry, "flags": {}, "finished": 11})
    with pytest.raises(InputError, match="tuned: 11 finished trials of stock_bert in .* are too few"):
        runs.best_of("stock_bert", 60, file, here)
    broken = "stock_bert: {5m: {flags: {}, finished: 12, trials: 12, hardware: x, %s}}"
    for text in (
        "[]",
        "stock_bert: {5m: {size: 1}}",
        "stock_bert: {often: {flags: {}}}",
        "a: b: c",
        "",
        broken % "runs: 1",
        broken % "runs: [{flags: {}}]",
        broken % "runs: [{flags: 1, bits_per_byte: 2}]",
        broken.replace("12", "many") % "runs: []",
    ):
        file.write_text(text)
        with pytest.raises(InputError, match="tuned: .* cannot be read"):
            runs.best_of("stock_bert", 300, file, here)
    with pytest.raises(InputError, match="'nonesuch' is unknown"):
        runs.Baseline.named("nonesuch")


@pytest.fixture
def asked(corpus, tokenizer):
    data = {"text": str(corpus), "eval_text": str(corpus), "tokenizer": str(tokenizer)}
    return Namespace(**data, seconds=5.0, trials=12, max_blocks=10)


def test_tuning_finds_the_best_and_goes_on(asked, tmp_path, monkeypatch, capsys):
    """Smaller rates are better here; the third trial is killed, the fifth fails, the sixth diverges."""
    ran, asked.trials = [], 14

    def fake(self, flags, folder, eval_text, max_blocks):
        ran.append(dict(flag.removeprefix("--").split("=", 1) for flag in flags))
        if len(ran) == 3:
            raise KeyboardInterrupt
        if len(ran) == 5:
            raise InputError("run: no memory")
        folder.mkdir()
        rate = float(ran[-1]["learning_rate"])
        return {"bits_per_byte": float("nan") if len(ran) == 6 else rate, "tokens_per_second": 1.0}

    monkeypatch.setattr(runs.Baseline, "run", fake)
    with pytest.raises(KeyboardInterrupt):
        tune.tune(asked, "stock_bert", tmp_path / "trials")
    found = tune.tune(asked, "stock_bert", tmp_path / "trials")
    assert len(ran) == 15 and ran[3] == ran[2], "what was killed is repeated as it was"
    first = runs.Baseline.named("stock_bert").first
    assert {key: float(ran[0][key]) if key == "learning_rate" else ran[0][key] for key in first} == {
        **first,
        "learning_rate": 1e-3,
    }
    assert (found["trials"], found["finished"]) == (14, 12)
    values = [run["bits_per_byte"] for run in found["runs"]]
    assert values == sorted(values) and found["bits_per_byte"] == values[0] == found["flags"]["learning_rate"]
    assert set(found["flags"]) == {"learning_rate", "size", "batch_size", "bf16"}
    assert found["flags"]["bf16"] in ("true", "false")
    assert ran[0]["total_training_time"] == "5s" and ran[0]["seed"] == "0" and "output_dir" not in ran[0]
    assert "failed: run: no memory" in capsys.readouterr().out
    assert tune.tune(asked, "stock_bert", tmp_path / "trials")["runs"] == found["runs"] and len(ran) == 15
    assert len(tune.table("stock_bert", found).splitlines()) == 13
    asked.max_blocks = 20
    with pytest.raises(InputError, match="holds another sweep"):
        tune.tune(asked, "stock_bert", tmp_path / "trials")


def test_tuning_with_too_few_finished_trials(asked, tmp_path, monkeypatch):
    """The first trial fails; two more make it a tuning, with the tokenizer and the script that it was begun with."""
    ran = []

    def fake(self, flags, folder, *given):
        ran.append(flags)
        if len(ran) == 1:
            raise InputError("run: no memory")
        folder.mkdir()
        return {"bits_per_byte": 2.0, "tokens_per_second": 1.0}

    monkeypatch.setattr(runs.Baseline, "run", fake)
    message = r"trials: 11 of 12 of stock_bert have finished, too few .* \(the last failure: run: no memory\)"
    with pytest.raises(RunError, match=message):
        tune.tune(asked, "stock_bert", tmp_path / "trials")
    asked.trials = 13
    assert tune.tune(asked, "stock_bert", tmp_path / "trials")["finished"] == 12 and len(ran) == 13
    with monkeypatch.context() as patch:
        patch.setattr(tune, "digest", lambda path: "another")
        with pytest.raises(InputError, match="tokenizer"):
            tune.tune(asked, "stock_bert", tmp_path / "trials")
    monkeypatch.setattr(runs.Baseline, "digest", "another")
    with pytest.raises(InputError, match="script"):
        tune.tune(asked, "stock_bert", tmp_path / "trials")


def test_tune_refuses_a_text_that_is_trained_on(corpus, tokenizer, tmp_path, capsys):
    flags = {"text": corpus, "eval_text": corpus, "tokenizer": tokenizer, "output_dir": tmp_path / "out"}
    assert tune.main(["stock_bert", *words(flags)]) == 2
    assert "documents stand in text too" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("stock_bert", {"trials": 11}, "trials: 11 are too few"),
        ("stock_bert", {"budget": 5}, "has no unit"),
        ("stock_bert", {"text": "nonesuch"}, "text: nonesuch does not exist"),
        ("nonesuch", {}, "'nonesuch' is unknown"),
    ],
)
def test_bad_flags_of_tune(name, more, message, corpus, tokenizer):
    with pytest.raises(InputError, match=message):
        tune.parse([name, *words({"text": corpus, "eval_text": corpus, "tokenizer": tokenizer, **more})])


# ---- texts ----


def test_a_part_of_the_text_is_held_out(corpus, tmp_path):
    train, held_out = texts.prepare_texts(str(corpus), None, tmp_path / "text")
    kept, held = list(read_documents(train)), list(read_documents(held_out))
    assert sorted(kept + held) == sorted(read_documents(corpus)) and not set(kept) & set(held)
    assert 0 < len(held) < 0.15 * len(kept)
    before = train.stat().st_mtime_ns
    (tmp_path / "same.txt").write_bytes(corpus.read_bytes())
    assert texts.prepare_texts(str(tmp_path / "same.txt"), None, tmp_path / "text") == (train, held_out)
    assert train.stat().st_mtime_ns == before, "made once"
    with pytest.raises(InputError, match="holds runs on another text"):
        texts.prepare_texts(str(held_out), None, tmp_path / "text")


def test_held_out_documents_that_are_trained_on_are_refused(corpus, tmp_path):
    documents = list(read_documents(corpus))
    first, second, *_ = (document for document in documents if len(document.split()) >= texts.LEAST_WORDS)
    other = "These words, of which there are more than sixteen, stand in no other document of all that are read here."
    (tmp_path / "apart.txt").write_text(f"{other}\n\nShort.\n")
    (tmp_path / "train.txt").write_text("\n\n".join([*documents, "Short."]))
    train, held_out = texts.prepare_texts(str(tmp_path / "train.txt"), str(tmp_path / "apart.txt"), tmp_path / "text")
    assert list(read_documents(held_out)) == [other, "Short."], "a short one may stand in both"
    assert len(list(read_documents(train))) == len(documents) + 1
    (tmp_path / "both.txt").write_text(f"{other}\n\n{first.upper()}\n\n{second}\n")
    with pytest.raises(InputError, match="eval_text: 2 of its documents stand in text too"):
        texts.prepare_texts(str(tmp_path / "train.txt"), str(tmp_path / "both.txt"), tmp_path / "again")
    assert not (tmp_path / "again" / "texts.json").exists()


@pytest.mark.parametrize("ends", ["\n", "\n\n"])
def test_lines_are_documents_where_no_blank_line_divides_them(corpus, tmp_path, ends):
    documents = list(read_documents(corpus))
    long = [document for document in documents if len(document.split()) >= texts.LEAST_WORDS]
    (tmp_path / "train.txt").write_text("\n".join(documents) + "\n")
    (tmp_path / "held_out.txt").write_text(ends.join(long[:3]) + "\n")
    for first, second in (("train", "held_out"), ("held_out", "train")):
        with pytest.raises(InputError, match="eval_text: 3 of its documents stand in text too"):
            texts.check_apart(str(tmp_path / f"{first}.txt"), str(tmp_path / f"{second}.txt"))
    (tmp_path / "apart.txt").write_text("".join(f"{word} " * 20 + ends for word in ("one", "two")))
    texts.check_apart(str(tmp_path / "train.txt"), str(tmp_path / "apart.txt"))


def test_texts_that_are_too_small_are_refused_before_a_run(corpus, tokenizer, tmp_path):
    (tmp_path / "short.txt").write_text("Two words.\n\n")
    texts.check_enough(corpus, corpus, str(tokenizer), 32)
    assert texts.LEAST_TOKENS == scorer.LEAST
    with pytest.raises(InputError, match="eval_text: no document of .*short.txt has 16 tokens"):
        texts.check_enough(corpus, tmp_path / "short.txt", str(tokenizer), 32)
    with pytest.raises(InputError, match="text: .*short.txt has fewer tokens than 32 blocks of 128"):
        texts.check_enough(tmp_path / "short.txt", corpus, str(tokenizer), 32)


def test_a_digest_is_of_names_and_contents(tmp_path):
    for name, content in (("a", "1"), ("b", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(content)
    first = texts.digest(tmp_path / "a")
    assert first != texts.digest(tmp_path / "b")
    (tmp_path / "b" / "file").write_text("1")
    assert first == texts.digest(tmp_path / "b")
    (tmp_path / "b" / "file").rename(tmp_path / "b" / "other")
    assert first != texts.digest(tmp_path / "b")


def test_a_text_of_which_nothing_is_held_out(tmp_path):
    (tmp_path / "one.txt").write_text("One document.\n")
    with pytest.raises(InputError, match="text: of its 1 documents . would be held out"):
        texts.prepare_texts(str(tmp_path / "one.txt"), None, tmp_path / "text")


@pytest.mark.slow
def test_the_comparison_runs_end_to_end(corpus, tmp_path, capsys):
    """Without a held-out text and a tokenizer: both are made; a second start runs nothing."""
    recipe = {"model_type": "modernbert", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    recipe |= {"intermediate_size": 64, "max_position_embeddings": 128, "learning_rate": 1e-3, "curve": "linear"}
    recipe |= {"per_device_train_batch_size": 4, "optimizer_type": "adamw", "warmup_proportion": 0.1}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "tuned.yaml").write_text(
        yaml.safe_dump(
            {
                name: {
                    "20s": {
                        "flags": {"size": "64x1", "batch_size": 4},
                        "finished": 12,
                        "trials": 12,
                        "hardware": "none",
                    }
                }
                for name in ("stock_bert", "expert_modernbert")
            }
        )
    )
    flags = words({"text": corpus, "recipes": tmp_path / "toy.yaml", "tuned": tmp_path / "tuned.yaml"})
    flags += words({"budget": "20s", "seeds": 1, "max_blocks": 20, "output_dir": tmp_path / "out"})
    flags += ["--baselines", "stock_bert", "expert_modernbert"]
    command = [sys.executable, "benchmarks/quality_at_budget.py", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["kind"] for row in result["summary"]] == ["ours", "baseline", "baseline"]
    assert all(row["bits_per_byte"]["median"] > 0 for row in result["summary"])
    tuning = result["baselines"]["stock_bert"]["tuning"]
    assert tuning.startswith("tuned: 12 of 12 trials of 20s finished (none); that hardware is not this one, ")
    lines = done.stdout.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("stock_bert: "))
    assert "size 64x1" in lines[place] and lines[place].endswith(f"; {tuning}")
    assert lines[place + 1].startswith("    planned steps done, and the last rate: ")
    assert quality_at_budget.main([*flags, "--resume"]) == 0
    assert "run 1 of 3" not in capsys.readouterr().out
    assert quality_at_budget.main([*flags, "--resume", "--budget", "21s"]) == 2
    assert "error: budget: the results in " in capsys.readouterr().err

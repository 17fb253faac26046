"""`--help` and `--print_config` of the two scripts: nothing missing, nothing twice, and a recipe that gives the same run."""

import re
import sys
from collections import Counter
from dataclasses import fields

import pytest
import yaml
from transformers import TrainingArguments

from budget_trainer.config import help
from budget_trainer.config.help import NOT_USED, OTHERS, help_text, parser_of, printed_config, topics
from budget_trainer.config.parser import parse_recipe
from budget_trainer.glue.arguments import parse_request
from tests.conftest import ROOT, run

SCRIPTS = ("train_mlm", "finetune_glue")
GIVEN = {
    "train_mlm": """
total_training_time: 10m
learning_rate: 2e-3
model_config: {attention_bias: true, rope_parameters: {full_attention: {rope_theta: 1e4}}}
mlm_probability_curve: 0.3@0,0.15@0.6
save_total_limit: null
model_type: modernbert
no_unigram_bias: true
report_to: none
""",
    "finetune_glue": """
task_name: [MRPC, RTE]
model_name_or_path: out/run/final
evaluation_strategy: steps
eval_steps: 10
save_model: false
grid: recipes/glue/quick.yaml
""",
}
WORDS = {
    "train_mlm": "--data_dir d --output_dir o --learning-rate=3e-3 --offset_heads -1,1 --no_sparse_last_layer --bf16",
    "finetune_glue": "--output_dir o --eval_steps 20 --bf16 --early_stopping_patience -1 --no_skip_memory_metrics",
}


@pytest.fixture(params=SCRIPTS)
def name(request):
    return request.param


def test_every_flag_has_one_topic_and_stands_in_the_help(name):
    parser, own, refused = parser_of(name)
    found = topics(parser, own, refused)
    listed = Counter(flag for flags in help.units(own).values() for flag in flags)
    assert max(listed.values()) == 1, listed.most_common(2)
    flags = Counter(flag for flags in found.values() for flag in flags)
    assert max(flags.values()) == 1
    assert set(flags) == {action.dest for action in parser._actions} - {"help"}
    text = help_text(name)
    for action in parser._actions:
        for option in action.option_strings:
            shown = option.replace("-", "_").replace("__", "--", 1) if len(option) > 2 else option
            shown = shown if shown.removeprefix("--no_") not in flags or shown.removeprefix("--") in flags else "--no_"
            assert re.search(rf"{shown}\b" if shown != "--no_" else "--no_", text), option
    assert list(found)[-2:] == [OTHERS, NOT_USED]


def test_topics_name_no_flag_that_is_gone_or_refused(name):
    parser, own, refused = parser_of(name)
    there = {action.dest for action in parser._actions}
    for flags in help.units(own).values():
        assert set(flags) <= there | {"bf16_dtype"} and not set(flags) & set(refused)


def test_every_flag_of_ours_has_a_topic_a_unit_and_words_with_its_default(name):
    parser, own, refused = parser_of(name)
    text = " ".join(help_text(name).split())
    theirs = {field.name for field in fields(TrainingArguments)}
    units = {flag: unit for flags in help.units(own).values() for flag, unit in flags.items()}
    for action in parser._actions:
        if action.dest == "help" or action.dest in refused:
            continue
        assert action.dest in theirs or (action.dest in units and action.help), action.dest
        entry = re.search(rf" --{action.dest} (\S+) (.*?) \[default: ([^\]]+)\]", text)
        assert entry and "[default" not in entry[2] and " --" not in entry[2], action.dest
        assert action.dest not in units or entry[1] == units[action.dest]


def test_the_end_of_the_help(name):
    text = help_text(name)
    for word in ("Examples:", "accelerate launch", "Exit codes:", "  130 ", "Documentation:", "docs/command_line.md"):
        assert word in text.partition(NOT_USED)[2], word
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_comes_before_the_trainer_is_imported(script):
    check = (
        f"import sys, {script}; {script}.main(['--help']); assert 'budget_trainer.training.trainer' not in sys.modules"
    )
    assert run([sys.executable, "-c", check]).returncode == 0
    check = f"import sys, {script}; {script}.main(['--version']); assert 'torch' not in sys.modules"
    assert run([sys.executable, "-c", check]).returncode == 0


def described(name, words):
    """Everything that a command line asks for, but for the name of the recipe."""
    if name == "train_mlm":
        recipe = parse_recipe(words)
        return {**recipe.as_dict(), "recipe": None}, recipe.explicit
    request = parse_request(words)
    return {**vars(request.glue), **vars(request.suite), **request.run.to_dict()}, request.explicit


def test_what_is_printed_gives_the_same_run(name, tmp_path):
    recipe, printed = tmp_path / "recipe.yaml", tmp_path / "printed.yaml"
    recipe.write_text(GIVEN[name])
    words = [str(recipe), *WORDS[name].split()]
    printed.write_text(printed_config(name, words))
    assert described(name, [str(printed)]) == described(name, words)
    again = printed_config(name, [str(printed)])
    assert yaml.safe_load(again) == yaml.safe_load(printed.read_text())


def test_what_is_printed_says_where_each_value_is_from(name, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(GIVEN[name])
    text = printed_config(name, [str(recipe), *WORDS[name].split()])
    named = text.partition("\n## ")[0]
    assert f"model_type: modernbert  # {recipe}\n" in named or f"task_name: [MRPC, RTE]  # {recipe}\n" in named
    assert "learning_rate: 3e-3  # command line\n" in named or "eval_steps: 20  # command line\n" in named
    parser, own, refused = parser_of(name)
    shown = set(re.findall(r"^(?:# )?(\w+): ", text.partition("\n\n")[2], re.M))
    assert shown == {action.dest for action in parser._actions} - set(refused) - {"help"}, (
        "complete, each with a value"
    )
    yaml.safe_load(re.sub(r"(?m)^# (\w+: )", r"\1", text.partition("\n\n")[2]))  # uncommented it is YAML too


@pytest.mark.parametrize(
    "value", ["a b", "it's", "x # y", "a: b", '"quoted"', "{1: 2}", "[a]", "*a", "1e-3", "true", "ä", "%"]
)
def test_any_text_survives(value, tmp_path):
    words = ["--data_dir", value, "--output_dir", "o", "--total_training_time", "1h"]
    (tmp_path / "printed.yaml").write_text(printed_config("train_mlm", words), encoding="utf-8")
    assert parse_recipe([str(tmp_path / "printed.yaml")]).data.data_dir == value


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "recipes").glob("*.yaml")))
def test_our_recipes_survive(recipe, tmp_path):
    words = [
        str(ROOT / "recipes" / recipe),
        "--data_dir",
        "d",
        "--output_dir",
        "o",
        "--use_cpu",
        "true",
        "--total_training_time",
        "1h",
    ]
    words += ["--fp16", "false"] if "fp16: true" in (ROOT / "recipes" / recipe).read_text() else []
    (tmp_path / "printed.yaml").write_text(printed_config("train_mlm", words))
    assert described("train_mlm", [str(tmp_path / "printed.yaml")]) == described("train_mlm", words)


def test_print_config_starts_and_writes_nothing(tmp_path):
    flags = ["--data_dir", "/nowhere", "--output_dir", tmp_path / "out", "--total_training_time", "10m"]
    done = run([sys.executable, "train_mlm.py", "recipes/quickstart.yaml", *flags, "--print_config"])
    assert done.returncode == 0 and yaml.safe_load(done.stdout)["total_training_time"] == "10m"
    assert not list(tmp_path.iterdir())
    done = run([sys.executable, "train_mlm.py", *flags, "--print_config", "--curve", "tanh"])
    assert done.returncode == 2 and done.stdout == "" and "error: curve: 'tanh' is unknown" in done.stderr
    done = run([sys.executable, "finetune_glue.py", "--print_config", "--task_nam", "RTE"])
    assert done.returncode == 2 and "did you mean task_name?" in done.stderr

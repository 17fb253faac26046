"""`--help` and `--print_config` of the two scripts: nothing missing, nothing twice, and a recipe that gives the same run."""

import re
import sys
from collections import Counter

import pytest
import yaml

from budget_trainer import finetune_glue, train_mlm
from budget_trainer.config import arguments
from budget_trainer.config.help import NOT_USED, OTHERS, _topics, answer
from budget_trainer.config.recipe import parse_recipe
from budget_trainer.glue import arguments as glue_arguments
from budget_trainer.glue.arguments import parse_request
from tests.conftest import ROOT, run

SCRIPTS = {"train_mlm": (train_mlm, arguments.PARSER), "finetune_glue": (finetune_glue, glue_arguments.PARSER)}
GIVEN = {
    "train_mlm": """{total_training_time: 10m, learning_rate: 2e-3, mlm_probability_curve: "0.3@0,0.15@0.6",
model_config: {attention_bias: true, rope_parameters: {full_attention: {rope_theta: 1e4}}}, save_total_limit: null,
model_type: modernbert, no_unigram_bias: true, report_to: none}""",
    "finetune_glue": """{task_name: [MRPC, RTE], model_name_or_path: out/run/final, evaluation_strategy: steps,
eval_steps: 10, save_model: false, grid: recipes/glue/quick.yaml}""",
}
WORDS = {
    "train_mlm": "--data_dir d --output_dir o --learning-rate=3e-3 --offset_heads -1,1 --no_sparse_last_layer --bf16",
    "finetune_glue": "--output_dir o --eval_steps 20 --bf16 --early_stopping_patience -1 --no_skip_memory_metrics",
}


@pytest.fixture(params=SCRIPTS)
def name(request):
    return request.param


def printed_config(name, words):
    return SCRIPTS[name][0].answer([*words, "--print_config"])


def test_every_flag_stands_once_in_the_help_with_unit_words_and_default(name):
    parser = SCRIPTS[name][1]
    found = _topics(parser)
    assert list(found)[-2:] == [OTHERS, NOT_USED] and set(found) <= {*parser.topics, OTHERS, NOT_USED}
    assert Counter(known.name for flags in found.values() for known in flags) == dict.fromkeys(parser.flags, 1)
    text = " ".join(answer(["--help"], parser, parser.parse).split())
    for known in parser.flags.values():
        if known.name in parser.refused:
            assert f"--{known.name}" in text.partition(NOT_USED)[2]
            continue
        entry = re.search(rf" --{known.name} (\S+) (.*?) \[default: ([^\]]+)\]", text)
        assert entry and "[default" not in entry[2] and " --" not in entry[2], known.name
        assert entry[1] == known.unit and all(choice in entry[2] for choice in known.choices), known.name
        assert (f"--no_{known.name}" in entry[3]) == (known.default is True)
    for flag in (flag for group in parser.groups[:-1] for flag in group.__dataclass_fields__):  # those of ours
        assert parser.flags[flag].topic in parser.topics and parser.flags[flag].help, flag


def test_questions_are_answered_before_heavy_imports(name):
    code = f"import sys; from budget_trainer import {name} as script; script.main(['--version']); "
    code += "assert 'torch' not in sys.modules; script.main(['--help']); "
    done = run([sys.executable, "-c", f"{code}assert 'budget_trainer.training.trainer' not in sys.modules"])
    assert done.returncode == 0 and "Exit codes:" in done.stdout, done.stderr


def described(name, words):
    """Everything that a command line asks for, but for the name of the recipe."""
    if name == "train_mlm":
        recipe = parse_recipe(words)
        return [vars(group) for group in (recipe.model, recipe.data, recipe.budget, recipe.training)], recipe.explicit
    request = parse_request(words)
    return [vars(group) for group in (request.glue, request.suite, request.training)], request.explicit


def test_what_is_printed_gives_the_same_run(name, tmp_path):
    recipe, printed = tmp_path / "recipe.yaml", tmp_path / "printed.yaml"
    recipe.write_text(GIVEN[name])
    words = [str(recipe), *WORDS[name].split()]
    text = printed_config(name, words)
    printed.write_text(text)
    assert described(name, [str(printed)]) == described(name, words)
    assert yaml.safe_load(printed_config(name, [str(printed)])) == yaml.safe_load(text)

    named = text.partition("\n## ")[0]
    assert f"model_type: modernbert  # {recipe}\n" in named or f"task_name: [MRPC, RTE]  # {recipe}\n" in named
    assert "learning_rate: 3e-3  # command line\n" in named or "eval_steps: 20  # command line\n" in named
    parser, defaults = SCRIPTS[name][1], text.partition("\n\n")[2]
    shown = set(re.findall(r"^(?:# )?(\w+): ", defaults, re.M))
    assert shown == set(parser.flags) - set(parser.refused), "complete, each with a value"
    yaml.safe_load(re.sub(r"(?m)^# (\w+: )", r"\1", defaults))  # uncommented it is YAML too


def test_our_recipes_survive(tmp_path):
    for recipe in sorted((ROOT / "recipes").glob("*.yaml")):
        words = [str(recipe), "--data_dir", "d", "--output_dir", "o", "--total_training_time", "1h"]
        (tmp_path / "printed.yaml").write_text(printed_config("train_mlm", words))
        assert described("train_mlm", [str(tmp_path / "printed.yaml")]) == described("train_mlm", words), recipe.name


@pytest.mark.parametrize(
    "value", ["a b", "it's", "x # y", "a: b", '"quoted"', "{1: 2}", "[a]", "*a", "1e-3", "true", "ä", "%"]
)
def test_any_text_survives(value, tmp_path):
    words = ["--data_dir", value, "--output_dir", "o", "--total_training_time", "1h"]
    (tmp_path / "printed.yaml").write_text(printed_config("train_mlm", words), encoding="utf-8")
    assert parse_recipe([str(tmp_path / "printed.yaml")]).data.data_dir == value


def test_print_config_starts_and_writes_nothing(tmp_path, capfd):
    flags = ["--data_dir", "/nowhere", "--output_dir", str(tmp_path / "out"), "--total_training_time", "10m"]
    assert train_mlm.main(["recipes/quickstart.yaml", *flags, "--print_config"]) == 0
    assert yaml.safe_load(capfd.readouterr().out)["total_training_time"] == "10m"
    assert not list(tmp_path.iterdir())
    assert train_mlm.main([*flags, "--print_config", "--curve", "tanh"]) == 2
    output = capfd.readouterr()
    assert output.out == "" and "error: curve: 'tanh' is unknown" in output.err
    assert finetune_glue.main(["--print_config", "--task_nam", "RTE"]) == 2
    assert "did you mean task_name?" in capfd.readouterr().err

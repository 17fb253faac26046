"""One reader for recipes and command lines, one place for all that is known of a flag; recipes with other values in them."""

import sys
from dataclasses import dataclass

import pytest
import yaml

from budget_trainer.config.edit import edited
from budget_trainer.config.help import answer
from budget_trainer.config.parser import FlagParser, flag, written_flags
from budget_trainer.config.recipe import parse_recipe
from budget_trainer.core.errors import InputError, RunError
from budget_trainer.glue.arguments import parse_request
from budget_trainer.glue.plan import read_grid
from budget_trainer.sweep import command as sweep
from tests.conftest import run


@dataclass
class Oven:
    """A group of flags as a script might have it."""

    heat: float = flag(180.0, "Degrees.", unit="CELSIUS", topic="Baking", min=50, below=300, speed=True)
    mode: str = flag("fan", "How it heats.", topic="Baking", choices=("fan", "grill"))
    salt: float = flag(1.0, "Grams.", min=0)
    rack: int | None = flag(3, "From below.", topic="Baking", min=1, special={-1: "any"})
    baking_time: str | None = flag(None, "Until done.", unit="TIME", bare="m", topic="Baking")
    light: bool = flag(True, "So that one sees it.", computes=False)
    pans: list[str] = flag([], "Which are in it.")
    notes: str | None = flag(None, "Anything.", unit="JSON")


PARSER = FlagParser("bake", (Oven,), ("Baking",), {"notes": "write them down"}, renamed={"level": ("rack", {})})
SAME = FlagParser("bake", (Oven,), ("Baking",))


def values(*words, parser=SAME):
    return vars(parser.parse(list(words)).groups[0])


def test_a_flag_is_its_field():
    """One field is enough for parsing, ranges, help, --print_config and the comparison of plans."""
    assert values("--heat", "200")["heat"] == 200.0 and values()["heat"] == 180.0
    with pytest.raises(InputError, match="^heat: 300 is out of range; give a number from 50 on and below 300$"):
        values("--heat=300")
    assert "--heat CELSIUS" in answer(["--help"], PARSER, PARSER.parse) and "Degrees. [default: 180]" in answer(
        ["--help"], PARSER, PARSER.parse
    )
    text = answer(["--heat", "200", "--print_config"], PARSER, PARSER.parse)
    assert "heat: 200  # command line\n" in text and "# mode: fan\n" in text
    assert [name for name, known in PARSER.flags.items() if known.speed] == ["heat"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--baking-time", "1h"], {"baking_time": "1h"}),
        (["--baking_time=5"], {"baking_time": "5"}),
        (["--rack", "-1"], {"rack": -1}),
        (["--rack=null"], {"rack": None}),
        (["--rack", "2", "--rack", "4"], {"rack": 4}),
        (["--no_light"], {"light": False}),
        (["--no-light=false"], {"light": True}),
        (["--light", "no", "--light"], {"light": True}),
        (["--pans", "a", "b"], {"pans": ["a", "b"]}),
        (["--notes", '{"a": 1}'], {"notes": '{"a": 1}'}),
    ],
)
def test_words_and_values(words, expected):
    assert values(*words) == values() | expected


def test_a_recipe_is_read_as_the_command_line_is(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("heat: 1e2\nno_light: yes\nrack: null\nmode: ~\npans: [a, b]\nnotes: {a: 1, b: [x, 2]}\n")
    read = values(str(recipe))
    assert read["heat"] == 100.0 and read["light"] is False and read["pans"] == ["a", "b"]
    assert read["notes"] == '{"a": 1, "b": ["x", 2]}'
    assert read["rack"] is None and read["mode"] == "fan", "a null unsets what can be unset; else the default counts"
    parsed = SAME.parse([str(recipe), "--heat", "90", "--pans", "c"])
    assert (parsed.groups[0].heat, parsed.groups[0].pans) == (90.0, ["c"]), "the command line wins"
    assert parsed.explicit == {"heat": "90", "light": "false", "pans": "c", "notes": '{"a": 1, "b": ["x", 2]}'}
    assert PARSER.parse(["--level", "2"]).explicit == {"rack": "2"}


def test_flags_become_lines_of_a_recipe():
    words = "--heat 1e2 --light --notes=d --rack -1 --pans a b".split()
    assert written_flags(words) == {"heat": "1e2", "light": "true", "notes": "d", "rack": "-1", "pans": "a b"}
    assert written_flags(["--no_light", "--baking-time=1h", "--light"]) == {"light": "true", "baking_time": "1h"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--heat hot", "heat: 'hot' is not a number; give one"),
        ("--rack 1.5", "rack: '1.5' is not a whole number; give one"),
        ("--rack 0", "rack: 0 is out of range; give a whole number from 1 on, or -1 for any"),
        ("--heat nan", "heat: nan is out of range; give a number from 50 on and below 300"),
        ("--salt inf", "salt: inf is out of range; give a number from 0 on"),
        ("--mode steam", "mode: 'steam' is unknown; choose fan or grill"),
        ("--light perhaps", "light: 'perhaps' is not true or false; give one of them"),
        ("--heat 100 200", "heat: '100 200' is not one value; give one"),
        ("--heat", "heat: given without a value; give one"),
        ("--baking_time soon", "baking_time: 'soon' is not a duration; write it as 24h, 90m, 1h30m or 45s"),
        ("--notes x", "notes: not used here (command line); write them down"),
        ("--heet 1", "heet: unknown key (command line); did you mean heat?"),
        ("--no_heat 1", "no_heat: unknown key (command line); did you mean heat?"),
        (  # told together, as of a recipe below
            "--zzz --notes x --heat hot --rack 0",
            "zzz: unknown key (command line); see bake.py --help for all flags; notes: not used here (command line); write "
            "them down; heat: 'hot' is not a number; give one; rack: 0 is out of range; give a whole number from 1 on, or "
            "-1 for any",
        ),
    ],
)
def test_errors(words, message):
    with pytest.raises(InputError) as error:
        PARSER.parse(words.split())
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--total_training_time 5q --job_time_limit -1", ["total_training_time: '5q'", "job_time_limit: '-1'"]),
        (
            "--validate_every 7",
            ["data_dir: missing", "output_dir: missing", "total_training_time: miss", "validate_every: '7'"],
        ),
    ],
)
def test_what_is_wrong_in_a_recipe_is_told_together(words, told):
    with pytest.raises(InputError) as error:
        parse_recipe(words.split())
    assert [str(error.value).count(text) for text in told] == [1] * len(told), error.value


def test_unknown_keys_are_told_together(tmp_path):
    """In recipes, command lines, GLUE's grids and sweep files."""
    with pytest.raises(InputError, match=r"^heet, zzz: unknown keys; heet .*mean heat\?; zzz .*: see bake.py --help"):
        PARSER.parse(["--heet", "1", "--zzz"])
    (tmp_path / "recipe.yaml").write_text("hiden_size: 3\nlerning_rate: 1\n")
    for parse in (parse_recipe, parse_request):
        with pytest.raises(InputError, match=r"^hiden_size, lerning_rate, sead: unknown keys; .*mean learning_rate\?"):
            parse([str(tmp_path / "recipe.yaml"), "--sead", "1"])
    (tmp_path / "grid.yaml").write_text("flags: {num_epochs: 3}\ngrid: {lerning_rate: [1e-5]}\n")
    with pytest.raises(InputError, match=r"^num_epochs, lerning_rate: unknown keys; .*mean num_train_epochs\?"):
        read_grid(str(tmp_path / "grid.yaml"), None, 1)
    (tmp_path / "sweep.yaml").write_text("serch: tpe\ntotal_tim: 1h\n")
    with pytest.raises(InputError, match=r"^serch, total_tim: unknown keys; .*mean search\?.*mean total_time\?"):
        sweep.parse_request([str(tmp_path / "sweep.yaml")]).spec()


def test_parsing_does_nothing_else():
    """No process group, no device, no environment: a launched process can parse before its run begins."""
    code = """
import os
import torch.distributed as dist
from budget_trainer.config.recipe import parse_recipe
from budget_trainer.glue.arguments import parse_request

before = dict(os.environ)
parse_recipe("--data_dir d --output_dir o --total_training_time 1h --push_to_hub false".split())
parse_request("--model_name_or_path m --task_name RTE --output_dir o --group_name g".split())
assert not dist.is_initialized() and dict(os.environ) == before and not os.path.exists("o")
"""
    launched = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    run([sys.executable, "-c", code], env=launched, timeout=100, ok=True)


def test_errors_are_made_of_their_parts():
    full = RunError("the disk is full", fix="make room", resumable=True)
    assert str(full) == "the disk is full; make room, then go on with --resume_from_checkpoint auto"
    assert full.line("repeat the command") == "the disk is full; make room, then repeat the command"
    assert str(RunError("it is over")) == "it is over"


# ---- recipes with other values, as plans and sweeps write them ----

RECIPE = """# What it is.
hidden_size: 64  # narrow
model_config:
  global_attn_every_n_layers: 1
  rope_parameters: {a: {b: 1}}

# The batch.
per_device_train_batch_size: 16
no_unigram_bias: true
"""


def test_a_recipe_is_filled_in_and_keeps_its_comments():
    values = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "unigram_bias": "false"}
    text = edited(RECIPE, values | {"model_config": '{"x": 1}', "learning_rate": "1e-3"}, whose="the plan")
    assert "# What it is." in text and "# narrow" in text and "# The batch." in text
    assert "per_device_train_batch_size: 4  # the plan's; was 16\n" in text
    read = yaml.load(text, yaml.BaseLoader)
    assert read["model_config"] == {"x": "1"} and read["per_device_train_batch_size"] == "4"
    assert read["learning_rate"] == "1e-3" and "no_unigram_bias" not in read and read["hidden_size"] == "64"


@pytest.mark.parametrize(
    "base",
    [
        "hidden_size: &w 64\nper_device_train_batch_size: *w\n",
        "{per_device_train_batch_size: 16,\n hidden_size: 64}\n",
        "{no_bf16: true, hidden_size: 64}\n",
        "---\nhidden_size: 64\n...\n",
        '"hidden_size": >-\n  64\n',
    ],
)
def test_any_recipe_that_is_read_can_be_filled_in(base):
    text = edited(base, {"per_device_train_batch_size": 4, "bf16": "true"}, whose="the plan", head="# head\nseed: 1\n")
    expected = {"hidden_size": "64", "per_device_train_batch_size": "4", "bf16": "true", "seed": "1"}
    assert yaml.load(text, yaml.BaseLoader) == expected

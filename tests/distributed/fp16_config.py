"""What train_mlm.py hands to `deepspeed.initialize` under each profile: `fp16_config.py FOLDER FLAGS...`.

DeepSpeed builds no fp16 engine without a GPU, so its last step is intercepted; all before it is real. One process for
each profile, forked after the imports, in the environment that `accelerate launch` would give it.
"""

import json
import os
import sys
from pathlib import Path

import deepspeed
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import prepare_deepspeed_cmd_env

from budget_trainer import train_mlm
from budget_trainer.config import arguments
from budget_trainer.training import run

CONFIGS = Path(__file__).resolve().parents[2] / "accelerate_configs"
folder, flags = Path(sys.argv[1]), sys.argv[2:]
arguments.launched_on_cpu = lambda: False  # the profile is a GPU's
run.measure_peak_flops = lambda *_: 0.0  # seconds for a product in fp16 on a CPU


def hand_over(name):
    def initialize(**kwargs):
        (folder / f"{name}.json").write_text(json.dumps(kwargs["config_params"], default=str))
        os._exit(0)

    return initialize


for name in ("zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"):
    if os.fork() == 0:
        words = ["--config_file", str(CONFIGS / f"{name}.yaml"), "--num_processes", "1", "train_mlm.py"]
        launched = _validate_launch_command(launch_command_parser().parse_args(words))[0]
        launched.deepspeed_fields_from_accelerate_config = ""
        _, environment = prepare_deepspeed_cmd_env(launched)
        os.environ.update(environment)
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29533")
        deepspeed.initialize = hand_over(name)
        os._exit(train_mlm.main([*flags, "--output_dir", str(folder / name)]) or 1)
    os.wait()

"""train_mlm.py under FSDP2 on CPUs over gloo: `torchrun ... fsdp_on_cpu.py FLAGS...`; train_mlm.py itself refuses it there."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from budget_trainer import train_mlm  # noqa: E402
from budget_trainer.core.command import DONE, RESUMABLE, exit_process  # noqa: E402
from budget_trainer.training import engine  # noqa: E402
from tests.distributed import gloo_as_gpus  # noqa: E402

gloo_as_gpus.patch()
engine.resolve_engine = lambda run, *rest: "fsdp"
code = train_mlm.main(sys.argv[1:])
if code in (DONE, RESUMABLE):
    exit_process(code)
sys.exit(code)

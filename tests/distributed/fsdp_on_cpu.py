"""train_mlm.py under FSDP2 on CPUs over gloo: `torchrun ... fsdp_on_cpu.py FLAGS...`.

Accelerate starts FSDP only on GPUs, and train_mlm.py refuses it elsewhere, though PyTorch's own parts work on a CPU. Here both
are told that gloo's ranks are GPUs; all the rest is real: sharding, gathering, checkpoints.
"""

import sys
from pathlib import Path

import accelerate
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed._functional_collectives import AsyncCollectiveTensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import train_mlm  # noqa: E402
from budget_trainer.core.command import DONE, RESUMABLE, exit_process
from budget_trainer.training import engine  # noqa: E402

make_state, gather = AcceleratorState.__init__, accelerate.Accelerator.get_state_dict


def as_on_gpus(self, *args, **kwargs):
    if not AcceleratorState._shared_state and PartialState._shared_state:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    make_state(self, *args, **kwargs)


def gathered(self, *args, **kwargs):
    """On a CPU what was gathered may still be on its way; on a GPU the copy to the host has waited for it."""
    state = gather(self, *args, **kwargs)
    return {name: value.wait() if isinstance(value, AsyncCollectiveTensor) else value for name, value in state.items()}


AcceleratorState.__init__ = as_on_gpus
accelerate.Accelerator.get_state_dict = gathered
engine.resolve_engine = lambda run, *rest: "fsdp"
code = train_mlm.main(sys.argv[1:])
if code in (DONE, RESUMABLE):
    exit_process(code)
sys.exit(code)

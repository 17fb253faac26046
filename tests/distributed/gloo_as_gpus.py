"""FSDP2 on CPUs over gloo: Accelerate starts it only on GPUs, though PyTorch's own parts work on a CPU."""

import accelerate
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed._functional_collectives import AsyncCollectiveTensor

make_state, gather = AcceleratorState.__init__, accelerate.Accelerator.get_state_dict


def as_on_gpus(self, *args, **kwargs):
    if not AcceleratorState._shared_state and PartialState._shared_state:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    make_state(self, *args, **kwargs)


def gathered(self, *args, **kwargs):
    """On a CPU what was gathered may still be on its way; on a GPU the copy to the host has waited for it."""
    state = gather(self, *args, **kwargs)
    return {name: value.wait() if isinstance(value, AsyncCollectiveTensor) else value for name, value in state.items()}


def patch():
    """Tell Accelerate that gloo's ranks are GPUs; all the rest is real: sharding, gathering, checkpoints."""
    AcceleratorState.__init__ = as_on_gpus
    accelerate.Accelerator.get_state_dict = gathered

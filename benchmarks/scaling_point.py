"""What `scaling.py` launches for one point: train, measure, and let the main process write the figures."""

import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import trainers  # noqa: E402
from benchmarks.cli import read_order  # noqa: E402
from benchmarks.measured import Stretches, shares  # noqa: E402
from benchmarks.workload import Text, Workload  # noqa: E402
from budget_trainer.core.errors import InputError  # noqa: E402
from budget_trainer.core.io import write_json_atomic  # noqa: E402
from budget_trainer.model.flops import measure_peak_flops, model_flops_per_token  # noqa: E402
from budget_trainer.training.launch import check_launch  # noqa: E402


def measure(order: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """The figures of the point; None on ranks other than the first."""
    w = Workload(**order["workload"])
    trainer, w = trainers.ours(w, Text(order["text"], w), folder)
    world = trainer.accelerator.num_processes
    check_launch(world, trainer.args.n_gpu)
    model: Any = trainer.model
    flops = model_flops_per_token(model, w.block_size, w.slots)
    parameters = model.num_parameters()
    trainer.accelerator.wait_for_everyone()
    peak = measure_peak_flops(trainer.args.device, w.dtype, order["peak_seconds"])
    accounts: list[dict[str, Any]] = []

    def next_stretch(account: dict[str, Any]) -> tuple[int, bool] | None:
        accounts.append(account)
        plan = [False, True] if trainer.args.device.type != "cpu" else [False]  # synchronise?
        return (order["steps"], plan[len(accounts) - 1]) if len(accounts) <= len(plan) else None

    trainer.add_callback(Stretches(trainer.gauge, order["warmup_steps"], next_stretch))
    trainer.train()
    if trainer.args.process_index != 0:
        return None
    warmup, timed, profiled = accounts[0], accounts[1], accounts[-1]
    rate = timed["steps"] * w.tokens_per_step * world / timed["seconds"]
    return {
        "processes": world,
        "device": str(trainer.args.device),
        "parameters": parameters,
        "tokens_per_second": rate,
        "step_seconds": timed["seconds"] / timed["steps"],
        "flops_per_token": flops,
        "peak_flops_per_process": peak,
        "mfu": flops * rate / (peak * world),
        "peak_memory_mib": timed["peak_memory_mib"],
        "shares": shares(profiled["phases"], profiled["seconds"]),
        **warmup,
    }


def main() -> int:
    order = read_order(__doc__)
    try:
        with tempfile.TemporaryDirectory() as folder:
            figures = measure(order, Path(folder))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if figures is not None:
        write_json_atomic(order["result"], figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())

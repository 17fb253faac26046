"""What `gpu_hour.py` starts beside the scripts of the project: a training whose host syncs are counted, a stock training.

gpu_hour_runs.py watch RESULT.json FIRST LAST FLAGS...    train_mlm.py; syncs of the steps FIRST to LAST - 1
gpu_hour_runs.py stock ORDER                              a stock Trainer for a time; the order in JSON
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

_SYNC = "synchronizing CUDA operation"  # what PyTorch says of each, behind set_sync_debug_mode
_SETTLING_STEPS = 5  # of the stock training that is timed


class _Syncs:
    """Counts the operations that make the host wait for a GPU, by the line of Python that called them."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last, self.steps, self.places = first, last, 0, Counter[str]()
        self._watching: ExitStack | None = None

    def step_begins(self, done: int) -> None:
        """`done` steps are behind it."""
        if self._watching is not None:
            self.steps += 1
        if done == self.last:
            self.stop()
        elif done == self.first and self._watching is None:
            self._begin()

    def _begin(self) -> None:
        import torch

        with ExitStack() as stack:
            caught = stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("warn")
                stack.callback(torch.cuda.set_sync_debug_mode, "default")
            stack.callback(self._count, caught)
            self._watching = stack.pop_all()

    def _count(self, caught: list[warnings.WarningMessage]) -> None:
        for one in caught:
            if _SYNC in str(one.message):
                self.places["/".join(Path(one.filename).parts[-2:]) + f":{one.lineno}"] += 1

    def stop(self) -> None:
        if self._watching is not None:
            self._watching.close()
        self._watching = None


def watch(result: Path, first: int, last: int, words: list[str]) -> int:
    """train_mlm.py with `words`; its exit code. The main process writes `result`: watched_steps, on_gpu, syncs, where."""
    from budget_trainer import train_mlm  # it starts the clock
    from budget_trainer.budget.callback import TimeBudgetCallback
    from budget_trainer.core.io import write_json_atomic

    syncs, own = _Syncs(first, last), TimeBudgetCallback.on_step_begin

    def on_step_begin(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        syncs.step_begins(state.global_step)
        own(self, args, state, control, **kwargs)

    TimeBudgetCallback.on_step_begin = on_step_begin  # type: ignore[method-assign]
    try:
        code = train_mlm.main(words)
    finally:
        syncs.stop()
        TimeBudgetCallback.on_step_begin = own  # type: ignore[method-assign]
    if os.environ.get("RANK", "0") == "0":
        import torch

        figures = {"watched_steps": syncs.steps, "on_gpu": torch.cuda.is_available(), "syncs": syncs.places.total()}
        write_json_atomic(result, {**figures, "where": dict(syncs.places.most_common(5))})
    return code


def stock(order: dict[str, Any]) -> dict[str, Any]:
    """Train a stock Trainer for `seconds` and score it by the pinned evaluation.

    It gets the benefit of the doubt: set-up, and the probe that sets `max_steps` so that the linear schedule ends with the
    time, come on top of the time. `order`: workload, data_dir, seconds, learning_rate, seed, probe_steps, result.
    """
    from transformers import TrainerCallback, set_seed

    from benchmarks import trainers
    from benchmarks.measured import Stretches
    from benchmarks.workload import Text, Workload
    from budget_trainer.training.evaluation import PinnedEvaluation

    w, seconds = Workload(**order["workload"]), order["seconds"]
    text = Text(order["data_dir"], w)
    assert text.folder is not None
    rows = text.folder.validation_rows()
    positions = max(w.block_size, rows[0].shape[1])

    class Deadline(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.end = time.perf_counter() + seconds

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop |= time.perf_counter() > self.end

    with tempfile.TemporaryDirectory() as folder:

        def build(**training: Any) -> Any:
            set_seed(order["seed"])
            given = {"seed": order["seed"], "learning_rate": order["learning_rate"], **training}
            return trainers.stock(w, text, Path(folder), most_rows=None, positions=positions, **given)[0]

        probe, accounts = build(), list[dict[str, Any]]()

        def next_stretch(account: dict[str, Any]) -> tuple[int, bool] | None:
            accounts.append(account)
            return (order["probe_steps"], False) if len(accounts) == 1 else None

        probe.add_callback(Stretches(probe.gauge, _SETTLING_STEPS, next_stretch))
        probe.train()
        planned = max(20, int(0.98 * seconds * accounts[1]["steps"] / accounts[1]["seconds"]))
        del probe
        trainer = build(max_steps=planned, lr_scheduler_type="linear", warmup_steps=max(1, round(0.06 * planned)))
        trainer.add_callback(Deadline())
        begin = time.perf_counter()
        trainer.train()
        trainer.gauge.drain()
        used, steps = time.perf_counter() - begin, trainer.state.global_step
        vocabulary: dict[str, Any] = {"special_ids": text.special_ids, "vocab_size": w.vocab_size}
        scores = PinnedEvaluation(*rows, **vocabulary).run(trainer.model, device=trainer.args.device)
    tokens = steps * w.tokens_per_step
    figures = {"steps": steps, "planned_steps": planned, "tokens": tokens, "tokens_per_second": tokens / used}
    figures |= {"used_seconds": used, "budget_seconds": seconds, "parameters": trainer.model.num_parameters()}
    return figures | {"evaluation": scores}


def _main(*words: str) -> int:
    from benchmarks.cli import bare_parser, read_order
    from budget_trainer.core import jobs
    from budget_trainer.core.errors import InputError
    from budget_trainer.core.io import write_json_atomic

    parser = bare_parser(__doc__)
    parser.add_argument("kind", choices=("watch", "stock"))
    kind = parser.parse_args(words[:1]).kind
    if kind == "watch":  # which ends with its parent by itself
        parser.add_argument("result", type=Path)
        parser.add_argument("first", type=int)
        parser.add_argument("last", type=int)
        parser.add_argument("flags", nargs=argparse.REMAINDER)
        a = parser.parse_args(words)
        return watch(a.result, a.first, a.last, a.flags)
    jobs.end_with_parent()
    order = read_order(__doc__, words[1:])
    try:
        write_json_atomic(order["result"], stock(order))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    from budget_trainer.core.command import exit_process

    exit_process(_main(*sys.argv[1:]))

#!/usr/bin/env python3
"""Tokens per second of our training and of a stock `Trainer`: same architecture, same batch, same text, one run.

    python benchmarks/throughput.py --output_dir out/throughput [--variants ours,dense,stock] [--stock_bf16]

Every variant trains in a process of its own, and only one trains at a time: in each round every variant has its turn of
--steps steps while the others wait. ours, ours_no_dropout, dense and ours_modernbert settle bf16 and compilation for 10
minutes by train_mlm.py's probe; the other variants are what their names say. Set-up, compilation and --warmup_steps
steps come before the first round and are printed, not counted; after each wait one step goes uncounted. Prints medians
over the rounds, writes throughput.json.

  x stock   tokens/s over stock's (stock_bf16's where stock does not run) of the same round: median (lowest, highest)
  MFU       model FLOPs (budget_trainer.model.flops: only predicted positions reach the vocabulary; ours compute the last
            layer there only) over the peak of a matrix product in the variant's precision, measured before it began
  computed  the same with the FLOPs that the variant computes: stock projects every position
  memory    CPU: most resident memory since the warm-up; GPU: most memory of tensors
  shares    of a step: waiting for data, forward, backward, clipping, optimizer, rest; overhead is all but forward,
            backward and optimizer. On a GPU they come from a stretch of its own that waits for the device at each border.
"""

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.cli import bare_parser, make_output_dir, one_line_errors, publish  # noqa: E402
from benchmarks.measured import PHASES, shares  # noqa: E402
from benchmarks.turns import Worker  # noqa: E402
from benchmarks.workload import Workload, fit  # noqa: E402
from budget_trainer.core.errors import InputError  # noqa: E402

# What each variant changes. The gated feed-forward of modernbert has 3 matrices where BERT's has 2: two thirds as wide.
VARIANTS: dict[str, dict[str, Any]] = {
    "ours": {"settle": True},
    "ours_no_dropout": {"settle": True, "dropout": 0.0},
    "dense": {"settle": True, "sparse": False},
    "stock": {"sparse": False, "bf16": False, "compile": False},
    "stock_no_dropout": {"sparse": False, "bf16": False, "compile": False, "dropout": 0.0},
    "stock_bf16": {"sparse": False, "compile": False},
    "ours_bf16_compiled": {},
    "ours_bf16_regional": {"regional_compile": True},
    "ours_bf16": {"compile": False},
    "ours_fp32_compiled": {"bf16": False},
    "ours_modernbert": {"settle": True, "model_type": "modernbert"},
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = bare_parser(__doc__)
    add = parser.add_argument
    add("--variants", default="ours,dense,stock", help=f"of {', '.join(VARIANTS)} (ours,dense,stock)")
    add("--stock_bf16", action="store_true", help="stock with bf16 too")
    add("--hidden_size", type=int, default=256, help="width (256)")
    add("--layers", type=int, default=4, help="depth (4)")
    add("--heads", type=int, default=4, help="attention heads (4)")
    add("--intermediate_size", type=int, default=1024, help="width inside of the feed-forward blocks (1024)")
    add("--dropout", type=float, default=0.1, help="of hidden states and attention (0.1)")
    add("--vocab_size", type=int, default=30_522, help="of the made text (30522)")
    add("--seq_length", type=int, default=128, help="tokens in a block (128)")
    add("--batch_size", type=int, default=32, help="blocks in a batch (32)")
    add("--mlm_probability", type=float, default=0.15, help="share of the tokens to predict (0.15)")
    add("--model_config", type=json.loads, help="ours: more keys of the native config, as JSON")
    add("--dataloader_num_workers", type=int, default=0, help="for every variant (0)")
    add("--data_dir", help="data folder of data_prep.blocks; without it Zipf-distributed tokens are drawn")
    add("--rounds", type=int, default=5, help="turns of each variant (5)")
    add("--steps", type=int, default=20, help="steps in a turn (20)")
    add("--warmup_steps", type=int, default=5, help="steps before the first turn, compilation included (5)")
    add("--peak_seconds", type=float, default=1.0, help="how long to measure the matrix product's peak (1.0)")
    add("--no_compile", action="store_true", help="compile nothing")
    add("--use_cpu", action="store_true", help="leave the GPU alone")
    add("--output_dir", default="out/throughput", help="throughput.json and the processes' logs (out/throughput)")
    a = parser.parse_args(argv)
    for name in ("rounds", "steps", "warmup_steps", "batch_size", "hidden_size", "layers", "heads"):
        if getattr(a, name) < 1:
            raise InputError(f"{name}: {getattr(a, name)} is below 1; give a whole number from 1 on")
    a.names = list(dict.fromkeys([*a.variants.split(","), *(["stock_bf16"] if a.stock_bf16 else [])]))
    for name in a.names:
        if name not in VARIANTS:
            raise InputError(f"variants: {name!r} is unknown; choose of {', '.join(VARIANTS)}")
    return a


def workload(a: argparse.Namespace, name: str) -> Workload:
    """What the variant trains."""
    base = Workload(
        hidden_size=a.hidden_size,
        num_hidden_layers=a.layers,
        num_attention_heads=a.heads,
        intermediate_size=a.intermediate_size,
        dropout=a.dropout,
        vocab_size=a.vocab_size,
        block_size=a.seq_length,
        batch_size=a.batch_size,
        mlm_probability=a.mlm_probability,
        dataloader_num_workers=a.dataloader_num_workers,
        model_config=None if name.startswith("stock") else a.model_config,
        use_cpu=a.use_cpu,
    )
    changed = replace(base, **VARIANTS[name])
    if changed.model_type == "modernbert":
        # Global attention in every layer, as in BERT; a multiple of 64 for the matrix units.
        config = {"global_attn_every_n_layers": 1, **(a.model_config or {})}
        width = max(64, round(a.intermediate_size * 2 / 3 / 64) * 64)
        changed = replace(changed, intermediate_size=width, model_config=config)
    return replace(changed, compile=changed.compile and not a.no_compile)


def measure(a: argparse.Namespace) -> dict[str, Any]:
    """Start the variants one after the other, let them train in turns, and gather their accounts."""
    jobs = {name: workload(a, name) for name in a.names}
    workers: dict[str, Worker] = {}
    with tempfile.TemporaryDirectory() as folder:
        text = ""
        for name, job in jobs.items():
            if not text or a.data_dir:
                jobs[name], text = fit(job, a.data_dir, Path(folder))
        try:
            for name, job in jobs.items():
                # The compile cache is empty, as on a new machine; who settles fills it in set-up, with the probe.
                order = {"name": name, "workload": asdict(job), "text": text}
                order |= {"warmup_steps": a.warmup_steps, "peak_seconds": a.peak_seconds}
                cache = str(Path(folder) / f"compile-{name}")
                workers[name] = Worker(name, order, a.output_dir / f"{name}.log", TORCHINDUCTOR_CACHE_DIR=cache)
                facts = workers[name].facts
                print(
                    f"{name}: ready after {facts['setup_seconds']:.1f} s of set-up and {facts['warmup_seconds']:.1f} s of "
                    f"warm-up, the first step {facts['first_step_seconds']:.1f} s"
                    + f" ({facts['dtype']}, compiled: {facts['compile']})",
                    flush=True,
                )
            rounds = []
            for number in range(a.rounds):
                at = number % len(a.names)  # another one begins each round
                rounds.append({name: workers[name].train(a.steps) for name in [*a.names[at:], *a.names[:at]]})
                print(f"round {number + 1} of {a.rounds}", flush=True)
            profiled = {
                name: worker.train(a.steps, synchronise=True)
                for name, worker in workers.items()
                if worker.facts["device"] != "cpu"
            }
        finally:
            for worker in workers.values():
                worker.end()
    facts = {name: worker.facts for name, worker in workers.items()}
    return {"variants": summarise(jobs, facts, rounds, profiled), "rounds": rounds, "profiled": profiled}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarise(
    jobs: dict[str, Workload],
    facts: dict[str, dict[str, Any]],
    rounds: list[dict[str, dict[str, Any]]],
    profiled: dict[str, dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Per variant: the figures of the table."""
    peaks: dict[str, float] = {}  # per precision, the best that any process reached
    for name in jobs:
        dtype = facts[name]["dtype"]
        peaks[dtype] = max(peaks.get(dtype, 0.0), facts[name]["peak_flops"])
    rate = {
        name: [turn[name]["steps"] * job.tokens_per_step / turn[name]["seconds"] for turn in rounds]
        for name, job in jobs.items()
    }
    result: dict[str, dict[str, Any]] = {}
    base = rate.get("stock", rate.get("stock_bf16"))
    for name, job in jobs.items():
        tokens = spread(rate[name])
        turns = [profiled[name]] if name in profiled else [turn[name] for turn in rounds]
        phases = {phase: sum(turn["phases"][phase] for turn in turns) for phase in PHASES}
        step = job.tokens_per_step / tokens["median"]
        peak = peaks[facts[name]["dtype"]]
        per_second = tokens["median"] / peak
        result[name] = {
            "tokens_per_second": tokens,
            "ratio_to_stock": spread([own / theirs for own, theirs in zip(rate[name], base, strict=True)])
            if base is not None
            else None,
            "step_seconds": step,
            "mfu": facts[name]["flops_per_token"] * per_second,
            "mfu_computed": facts[name]["flops_per_token_computed"] * per_second,
            "peak_flops_of_dtype": peak,
            "peak_memory_mib": max(turn[name]["peak_memory_mib"] for turn in rounds),
            "shares": shares(phases, sum(turn["seconds"] for turn in turns)),
            # What the warm-up took beyond its steps: a second compilation may hide behind the first step.
            "compile_seconds": max(0.0, facts[name]["warmup_seconds"] - facts[name]["warmup_steps"] * step)
            if facts[name]["compile"] != "no"
            else 0.0,
            **facts[name],
            "workload": asdict(job),
        }
    return result


def table(variants: dict[str, dict[str, Any]]) -> str:
    head = f"{'variant':18} {'tokens/s':>9} {'(min - max)':>17}  {'x stock':>18} {'MFU':>6} {'computed':>8} {'memory':>10}"
    head += f" {'computes in':>17} |" + "".join(f" {name:>8}" for name in (*PHASES, "rest")) + "  overhead"
    lines = [head.replace("data_wait", "data").replace("optimizer", "optim")]
    for name, row in variants.items():
        tokens, ratio = row["tokens_per_second"], row["ratio_to_stock"]
        text = f"{name:18} {tokens['median']:9,.0f} {'({min:,.0f} - {max:,.0f})'.format(**tokens):>17}"
        text += f"  {'{median:.2f} ({min:.2f} - {max:.2f})'.format(**ratio) if ratio else '':>18}"
        text += f" {row['mfu']:6.1%} {row['mfu_computed']:8.1%} {row['peak_memory_mib']:6,.0f} MiB"
        how = (
            f"{row['dtype']} {row['compile']}".replace("float32", "fp32")
            .replace("bfloat16", "bf16")
            .removesuffix(" no")
        )
        text += f" {how:>17} |"
        text += "".join(f" {row['shares'][phase]:8.1%}" for phase in (*PHASES, "rest"))
        lines.append(text + f" {row['shares']['trainer_overhead']:9.1%}")
    return "\n".join(lines)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    a = parse(argv)
    make_output_dir(a)
    result = measure(a)
    publish(a, "throughput", table(result["variants"]), result, leave_out=["names"])


if __name__ == "__main__":
    sys.exit(main())

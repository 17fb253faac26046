"""What a user writes from the library's examples: `Trainer` and `BertForMaskedLM`, made to end in a given time.

    python -m benchmarks.baselines.stock_bert --text train.txt --tokenizer DIR --output_dir out/stock \
        --total_training_time 5m

Documents are tokenised, joined and cut into blocks of 128 as run_mlm.py does it, the library's collator masks 15 %, AdamW
follows a linear schedule with 6 % of warm-up. Trainer's schedule counts steps: a probe measures how many fit into the time,
and a callback ends training where the probe was wrong. Tokenising, the probe and the save do not count. Gradients are not
accumulated: with accumulation Trainer scales the loss of this class wrongly (transformers 5.23).
"""

import argparse
import math
import time
from itertools import chain, pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.baselines.command import BLOCK, check_blocks, needed, parse, run_parser, write_result

with needed():
    import accelerate  # noqa: F401  Trainer runs on it
    import torch
    from datasets import load_dataset
    from transformers import (
        AutoTokenizer,
        BertConfig,
        BertForMaskedLM,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

PROBE_SECONDS, PROBE_STEPS, LEAST_PROBE_STEPS = 10.0, 100, 4
MARGIN = 0.97  # of the time, for which steps are planned: they are not all of one length


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    return parse(run_parser(__doc__, size="256x4", batch_size=32, learning_rate="1e-3", bf16="false"), argv)


def read_blocks(text: str, tokenizer: Any) -> Any:
    """A Dataset of blocks; special tokens stand around each document, as in run_mlm.py."""

    def tokenize(rows: dict[str, list[str]]) -> Any:
        return tokenizer(rows["text"], return_special_tokens_mask=True, verbose=False)

    def group(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {name: [*chain.from_iterable(lists)] for name, lists in rows.items()}
        starts = range(0, len(joined["input_ids"]) // BLOCK * BLOCK, BLOCK)
        return {name: [row[start : start + BLOCK] for start in starts] for name, row in joined.items()}

    if not Path(text).stat().st_size:
        return []
    texts = load_dataset("text", data_files=text, split="train").filter(lambda row: bool(row["text"].strip()))
    if not len(texts):
        return []
    tokens = texts.map(tokenize, batched=True, remove_columns=["text"])
    return tokens.map(group, batched=True, features=tokens.features)


class TimeLimit(TrainerCallback):
    """Notes when steps end, and ends training where another one would end behind `seconds`."""

    def __init__(self, seconds: float, least: int = 1) -> None:
        self.seconds, self.least = seconds, least
        self.ends: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begin = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.monotonic() - self.begin)
        steps = len(self.ends)
        if steps >= self.least and self.ends[-1] * (steps + 1) / steps > self.seconds:
            control.should_training_stop = True


def train(
    a: argparse.Namespace, blocks: Any, tokenizer: Any, steps: int, limit: TimeLimit
) -> tuple[Any, float, float]:
    """A new model, trained for `steps` steps or until the limit; the seconds that this took; the rate of a next step."""
    set_seed(a.seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=a.hidden_size,
        num_hidden_layers=a.layers,
        num_attention_heads=a.hidden_size // 64,
        intermediate_size=4 * a.hidden_size,
        pad_token_id=tokenizer.pad_token_id,
    )
    model, on_gpu = BertForMaskedLM(config), torch.cuda.is_available()
    run = TrainingArguments(
        a.output_dir,
        max_steps=steps,
        per_device_train_batch_size=a.batch_size,
        learning_rate=a.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(0.06 * steps),
        weight_decay=0.01,
        bf16=a.bf16 == "true",
        use_cpu=not on_gpu,
        dataloader_drop_last=True,
        dataloader_pin_memory=on_gpu,
        dataloader_num_workers=4 if on_gpu else 0,
        remove_unused_columns=False,  # or the collator would not get special_tokens_mask, and would look each token up
        save_strategy="no",
        report_to="none",
        logging_steps=50,
        disable_tqdm=True,
        seed=a.seed,
    )
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    trainer = Trainer(model, run, train_dataset=blocks, data_collator=collator, callbacks=[limit])
    trainer.train()
    if on_gpu:
        torch.cuda.synchronize()
    return model, time.monotonic() - limit.begin, trainer.lr_scheduler.get_last_lr()[0]


def main(argv: list[str] | None = None) -> None:
    a = parse_flags(argv)
    tokenizer = AutoTokenizer.from_pretrained(a.tokenizer)
    blocks = read_blocks(a.text, tokenizer)
    check_blocks(a, len(blocks))
    probe, limit = TimeLimit(PROBE_SECONDS, LEAST_PROBE_STEPS), TimeLimit(a.seconds)
    train(a, blocks, tokenizer, PROBE_STEPS, probe)
    step = median(after - before for before, after in pairwise(probe.ends))
    planned = max(1, int(MARGIN * a.seconds / step))
    model, seconds, rate = train(a, blocks, tokenizer, planned, limit)
    more = {"planned_steps": planned, "last_learning_rate": float(rate)}
    write_result(a, model, tokenizer, len(limit.ends), a.batch_size, seconds, **more)


if __name__ == "__main__":
    main()

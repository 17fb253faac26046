"""What the command lines of the baselines share: the flags of a run, one-line errors, timing apart, the files of a result.

No import of more than the standard library and the budget's reading of durations.
"""

import argparse
import json
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from budget_trainer.budget.clock import parse_duration

BLOCK = 128  # tokens of a block


def refuse(reason: object) -> NoReturn:
    """End with exit code 2 and one line."""
    print(f"error: {reason}", file=sys.stderr)
    raise SystemExit(2)


@contextmanager
def needed() -> Iterator[None]:
    """Around imports: a package that is missing or too old is one line."""
    try:
        yield
    except ImportError as error:
        refuse(f"{error.name}: cannot be imported ({error}); pip install -U {str(error.name).partition('.')[0]}")


def bare_parser(doc: str | None) -> argparse.ArgumentParser:
    """One that shows the module's text as it is, guesses no flag, and says its errors in one line."""
    how = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser(description=doc, **how)
    parser.error = refuse  # type: ignore[method-assign]
    return parser


def run_parser(
    doc: str | None, *, size: str, batch_size: int, learning_rate: str, bf16: str
) -> argparse.ArgumentParser:
    """A baseline's, with these defaults."""
    parser = bare_parser(doc)
    add = parser.add_argument
    add("--text", required=True, help="training text, one document per line; empty lines do not count")
    add("--tokenizer", required=True, help="folder of a tokenizer")
    add("--output_dir", required=True, help="folder for the model, its tokenizer and result.json")
    add("--total_training_time", required=True, help="for training, as 5m")
    add("--size", default=size, help=f"width x layers; a head is 64 wide ({size})")
    add("--batch_size", type=int, default=batch_size, help=f"blocks of {BLOCK} tokens ({batch_size})")
    add("--learning_rate", type=float, default=float(learning_rate), help=f"peak of AdamW's ({learning_rate})")
    add("--bf16", choices=("true", "false"), default=bf16, help=f"mixed precision ({bf16})")
    add("--seed", type=int, default=0)
    return parser


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """The flags, checked, with `seconds`, `hidden_size` and `layers`."""
    a = parser.parse_args(argv)
    try:
        a.seconds = parse_duration(a.total_training_time, "total_training_time")
    except ValueError as error:
        refuse(error)
    size = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", a.size)
    if not size or int(size[1]) % 64:
        refuse(f"size: {a.size!r} is not width x layers, with a width that is a multiple of 64; write 256x4")
    a.hidden_size, a.layers = int(size[1]), int(size[2])
    for name in ("batch_size", "accumulation"):
        if getattr(a, name, 1) < 1:
            refuse(f"{name}: {getattr(a, name)} is below 1; give 1 or more")
    if not a.learning_rate > 0:
        refuse(f"learning_rate: {a.learning_rate} is not above 0; give one as 1e-3")
    for name in ("text", "tokenizer"):
        if not Path(getattr(a, name)).exists():
            refuse(f"{name}: {getattr(a, name)} does not exist; give --{name}")
    return a


def check_blocks(a: argparse.Namespace, count: int) -> None:
    """Refuse a text that does not fill one batch."""
    if count < a.batch_size:
        fix = "give more text or a smaller --batch_size"
        refuse(f"text: {a.text} gives {count} blocks of {BLOCK} tokens, and a batch has {a.batch_size}; {fix}")


def apart(function: Callable[..., Any], *given: Any) -> Any:
    """The answer of `function` from a process of its own, with an empty compile cache; None where that process fails.

    So nothing that is compiled there is at hand here. The function and what is given to it are pickled.
    """
    spawn = multiprocessing.get_context("spawn")
    answer, sender = spawn.Pipe(duplex=False)
    with TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        child = spawn.Process(target=_answer, args=(sender, cache, function, given))
        child.start()
        child.join()
    return answer.recv() if answer.poll() else None


def _answer(sender: Any, cache: str, function: Callable[..., Any], given: tuple[Any, ...]) -> None:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    sender.send(function(*given))


def write_result(
    a: argparse.Namespace, model: Any, tokenizer: Any, steps: int, blocks: int, seconds: float, **more: Any
) -> None:
    """The model and its tokenizer, and result.json: steps, used_seconds, tokens_per_second of `blocks` a step, `more`."""
    model.save_pretrained(a.output_dir)
    tokenizer.save_pretrained(a.output_dir)
    result = {"steps": steps, "used_seconds": seconds, "tokens_per_second": steps * blocks * BLOCK / seconds}
    result |= more
    Path(a.output_dir, "result.json").write_text(json.dumps(result) + "\n")
    print(result)

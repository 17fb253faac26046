"""Show what a checkpoint has learned: python -m budget_trainer.fill_mask out/quickstart/final --text "A [MASK]." """

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from budget_trainer.core.command import Parser, run_command
from budget_trainer.core.errors import InputError
from budget_trainer.data.whole_words import check_not_sentencepiece, vocabulary_size

EXAMPLES = (
    "Returns a [MASK] of all the values.",
    "Raises a ValueError if the [MASK] is not valid.",
    "The default value is [MASK].",
    "If True, the [MASK] is returned as a list.",
    "This function takes two [MASK] and returns their sum.",
)


def _fill_mask(folder: str, texts: Sequence[str], top: int = 3) -> list[list[tuple[str, float]]]:
    """For each text, the `top` most probable (token, probability) pairs for its one `[MASK]`.

    Raises InputError where a text has not exactly one `[MASK]`, or weights are missing in `folder`, and OSError where it
    holds no model.
    """
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    from budget_trainer.model.build import most_tokens
    from budget_trainer.model.checkpoint import check_loaded, has_tokenizer, read_config

    for text in texts:
        if text.count("[MASK]") != 1:
            raise InputError(f"--text {text!r} has {text.count('[MASK]')} times [MASK]; write it exactly once.")
    check_not_sentencepiece(Path(folder))
    if Path(folder).is_dir() and not has_tokenizer(Path(folder)):
        raise InputError(f"model: {folder} has no tokenizer (tokenizer.json, ...); put the model's own there")
    config = read_config(folder, "model")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    loaded: Any = AutoModelForMaskedLM.from_pretrained(
        folder,
        config=config,
        trust_remote_code=False,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # `check_loaded` names them
        output_loading_info=True,
    )
    model = loaded[0].eval()
    if new := check_loaded(model, loaded[1], f"model: {folder}"):
        raise InputError(
            f"model: {folder} lacks {len(new)} weights of its head ({new[0]}, ...); give a whole checkpoint"
        )
    if (size := vocabulary_size(tokenizer)) > model.config.vocab_size:
        has = f"has a tokenizer of {size:,} tokens and a vocabulary of {model.config.vocab_size:,}"
        raise InputError(f"model: {folder} {has}; put the model's own tokenizer there")
    answers = []
    for text in texts:
        batch = tokenizer(text.replace("[MASK]", tokenizer.mask_token), return_tensors="pt")
        if (length := batch["input_ids"].shape[1]) > most_tokens(config):
            raise InputError(
                f"--text {text[:40]!r}... has {length:,} tokens, the model takes {most_tokens(config)}; cut it"
            )
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        at_mask = logits[batch["input_ids"] == tokenizer.mask_token_id].squeeze(0)
        best = at_mask.softmax(-1).topk(top)
        tokens = [tokenizer.decode([index]).strip() for index in best.indices.tolist()]
        answers.append(list(zip(tokens, best.values.tolist(), strict=True)))
    return answers


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_command(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    parser = Parser("python -m budget_trainer.fill_mask", __doc__)
    parser.add_argument("model", type="path", help="a checkpoint folder, such as out/quickstart/final")
    parser.add_argument("--text", action="append", help="a sentence with one [MASK]; may be repeated")
    parser.add_argument("--top", type=int, default=3, help="how many predictions to print (3)")
    arguments = parser.parse_args(argv)
    fix = "give the folder of a finished run, such as OUT/final"
    if not (Path(arguments.model) / "config.json").is_file():
        raise InputError(f"model: {arguments.model} has no config.json; {fix}")
    if arguments.top < 1:
        raise InputError(f"top: {arguments.top} is below 1; give a whole number from 1 on")
    texts = arguments.text or EXAMPLES
    try:
        answers = _fill_mask(arguments.model, texts, arguments.top)
    except InputError:
        raise
    except Exception as error:  # the library has a class of its own for each file that is missing or broken
        raise InputError(f"model: {arguments.model} cannot be read ({' '.join(str(error).split())}); {fix}") from error
    for text, best in zip(texts, answers, strict=True):
        print(text)
        print("    " + "   ".join(f"{token} {100 * probability:.1f} %" for token, probability in best))


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""The pinned evaluation of any masked language model, with the classes of Transformers alone.

    python benchmarks/baselines/scorer.py --model DIR --text held_out.txt [--max_blocks 2000] [--output_file scores.json]

Blank lines end a document; the lines in between are stripped and joined by spaces. The model's own tokenizer cuts each
document into blocks of 128: [CLS], up to 126 tokens, [SEP]; a piece of fewer than 16 tokens is left out. Of the n tokens of a
block round(0.15 n), at least one, are selected: 80 % become [MASK], 10 % a random token, 10 % stay. All draws come from one
generator with seed 1234, block after block. Special tokens that are written out in the text are text. The numbers are those
of `budget_trainer.training.evaluation.PinnedEvaluation`, which a test compares.

Prints one line of JSON: loss (nats per selected token), perplexity, accuracy, bits_per_byte (bits of the selected tokens over
the UTF-8 bytes, without white space, that they stand for: compares between tokenizers), tokens, blocks, parameters, model_type.
"""

import argparse
import json
import lzma
import math
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

try:
    import torch
    from torch.nn import functional as F
    from transformers import AutoModelForMaskedLM, AutoTokenizer
except ImportError as error:
    print(f"error: {error.name}: cannot be imported ({error}); pip install torch transformers", file=sys.stderr)
    raise SystemExit(2) from None

BLOCK, LEAST, RATE, SEED = 128, 16, 0.15, 1234  # pinned: another value would be another evaluation


def refuse(reason: str) -> None:
    print(f"error: {reason}", file=sys.stderr)
    raise SystemExit(2)


def read_documents(path: str) -> Iterator[str]:
    """The documents of a text file, plain or .xz, each as one line."""
    parts: list[str] = []
    with (lzma.open if path.endswith(".xz") else open)(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            if part := line.strip():
                parts.append(part)
            elif parts:
                yield " ".join(parts)
                parts = []
    if parts:
        yield " ".join(parts)


def bytes_of_tokens(text: str, spans: list[tuple[int, int]]) -> list[int]:
    """UTF-8 bytes of each token's characters but white space; of tokens that share a character the first has it."""
    sizes, counted = [], 0
    for start, end in spans:
        sizes.append(len("".join(text[max(start, counted) : end].split()).encode()))
        counted = max(counted, end)
    return sizes


def cut_blocks(path: str, tokenizer: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(ids [n], bytes [n]) of each block, n at most BLOCK; 0 bytes for [CLS] and [SEP]."""
    for text in read_documents(path):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, sizes = encoded["input_ids"], bytes_of_tokens(text, encoded["offset_mapping"])
        for start in range(0, len(ids), BLOCK - 2):
            piece, size = ids[start : start + BLOCK - 2], sizes[start : start + BLOCK - 2]
            if len(piece) >= LEAST:
                framed = [tokenizer.cls_token_id, *piece, tokenizer.sep_token_id]
                yield torch.tensor(framed), torch.tensor([0, *size, 0])


def corrupt(ids: torch.Tensor, vocab_size: int, mask_id: int, draws: torch.Generator) -> tuple[torch.Tensor, ...]:
    """(inputs [n], selected positions [k]) of a block's ids [n]."""
    count = len(ids)
    order = torch.rand(count, generator=draws)
    order[[0, -1]] = 2.0  # [CLS] and [SEP] come last
    selected = order.argsort()[: max(1, round(RATE * (count - 2)))]
    action, noise = torch.rand(count, generator=draws), torch.randint(vocab_size, (count,), generator=draws)
    inputs = ids.clone()
    inputs[selected[action[selected] < 0.9]] = noise[selected[action[selected] < 0.9]]
    inputs[selected[action[selected] < 0.8]] = mask_id
    return inputs, selected


@torch.no_grad()
def score(folder: str, text: str, max_blocks: int = 2000, batch_size: int = 32) -> dict[str, Any]:
    """Score the model and tokenizer in `folder` on the first blocks of `text`; the keys are those of the module's text."""
    tokenizer = AutoTokenizer.from_pretrained(folder, split_special_tokens=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    vocab_size, draws = max(tokenizer.get_vocab().values()) + 1, torch.Generator().manual_seed(SEED)
    blocks = []
    for ids, sizes in islice(cut_blocks(text, tokenizer), max_blocks):
        inputs, selected = corrupt(ids, vocab_size, tokenizer.mask_token_id, draws)
        blocks.append((inputs, selected, ids[selected], int(sizes[selected].sum())))
    if not blocks:
        refuse(f"text: {text} gives no block of {LEAST} tokens or more; give more text")
    blocks.sort(key=lambda block: len(block[0]))
    nats = hits = tokens = 0.0
    for start in range(0, len(blocks), batch_size):
        batch = blocks[start : start + batch_size]
        ids = torch.full((len(batch), len(batch[-1][0])), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, (inputs, *_) in enumerate(batch):
            ids[row, : len(inputs)], mask[row, : len(inputs)] = inputs, 1
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        rows = torch.cat([torch.full_like(selected, row) for row, (_, selected, *_) in enumerate(batch)])
        logits = logits[rows.to(device), torch.cat([block[1] for block in batch]).to(device)].float()
        labels = torch.cat([block[2] for block in batch]).to(device)
        nats += F.cross_entropy(logits, labels, reduction="sum").item()
        hits += (logits.argmax(-1) == labels).sum().item()
        tokens += len(labels)
    loss = nats / tokens
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 50.0)),
        "accuracy": hits / tokens,
        "bits_per_byte": nats / math.log(2) / sum(block[3] for block in blocks),
        "tokens": int(tokens),
        "blocks": len(blocks),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "model_type": model.config.model_type,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder with a model and its tokenizer")
    parser.add_argument("--text", required=True, help="held-out text, .txt or .xz")
    parser.add_argument("--max_blocks", type=int, default=2000, help="the first blocks only (2000)")
    parser.add_argument("--output_file", help="JSON file to write")
    a = parser.parse_args(argv)
    if not Path(a.text).is_file():
        refuse(f"text: {a.text} is not a file; give a text with blank lines between documents")
    if not (Path(a.model) / "config.json").is_file():
        refuse(f"model: {a.model} holds no config.json; give a folder with a model and its tokenizer")
    line = json.dumps(score(a.model, a.text, a.max_blocks))
    if a.output_file:
        Path(a.output_file).write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()

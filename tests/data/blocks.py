"""Blocks of tokens and collators that the tests of masking share."""

import numpy as np
import torch

from budget_trainer.data.masking import MaskingCollator

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
PAD, CLS, SEP, MASK = (SPECIAL[name] for name in ("pad", "cls", "sep", "mask"))
VOCAB = 200


def collator(**changes):
    options = {"seed": 7, "special_ids": SPECIAL, "vocab_size": VOCAB, "block_size": 32, "has_padding": True}
    return MaskingCollator(**options | changes)


def samples(ids, epoch=0):
    """What the data folder hands over for these blocks, rows 0, 1, ... of it."""
    return {"input_ids": ids, "epoch": np.full(len(ids), epoch), "row": np.arange(len(ids))}


def batch(rows=64, length=32, epoch=0, seed=0):
    """Blocks of random length with a [SEP] in their middle; a few are full."""
    random = np.random.default_rng(seed)
    ids = random.integers(5, VOCAB, (rows, length))
    ids[:, 0] = CLS
    for i, size in enumerate(random.integers(4, length + 1, rows)):
        ids[i, size - 1] = SEP
        ids[i, size // 2] = SEP
        ids[i, size:] = PAD
    return samples(ids, epoch)


def take(source, rows):
    return {name: array[rows] for name, array in source.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def ordinary(ids):
    """Where the tokens that may be predicted are."""
    return ~np.isin(ids, [PAD, CLS, SEP])


def predicted(out):
    """Where a batch has labels, as a boolean array of the shape of the ids."""
    found = np.zeros(out["input_ids"].shape, bool)
    used = (out["labels"] != -100).numpy()
    found[np.nonzero(used)[0], out["masked_positions"].numpy()[used]] = True
    return found

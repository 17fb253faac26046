"""The pinned evaluation: one masked-language-model score that compares across recipes, and across tokenizers in bits.

15 % of the ordinary tokens of each block are selected, 80 % of them become [MASK], 10 % a random token, 10 % stay. The
draws depend on a fixed seed and the order of the blocks alone, never on what the model was trained with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from budget_trainer.core.errors import InputError

_RATE, _MASKED, _REPLACED = 0.15, 0.8, 0.9  # pinned: another value would be another evaluation
_WIDTH_STEP = 16  # batches are cut to a multiple of this many tokens

_Forward = Callable[[Tensor, Tensor, Tensor], Tensor]  # logits of ids [B, L], mask [B, L] and positions [B, S]


@dataclass(frozen=True)
class _Block:
    """One corrupted block: inputs [n], and the positions, original ids and bytes [k] of its selected tokens."""

    inputs: Tensor
    positions: Tensor
    labels: Tensor
    nbytes: int


class PinnedEvaluation:
    """Held-out blocks with their fixed corruption.

    Args:
        input_ids: [n, L] ids of [CLS] body [SEP] padding; the first blocks of the held-out text, in its order.
        token_bytes: [n, L] UTF-8 bytes that each token stands for, 0 for special ones.
        vocab_size: `vocabulary_size(tokenizer)`, the range of the random tokens.
        seed: of all draws. Another seed's losses do not compare.
        batch_size: blocks in a forward pass; no influence on the result beyond rounding.

    Raises:
        InputError: the arrays do not fit each other, or a block holds fewer than three tokens.
    """

    def __init__(
        self,
        input_ids: NDArray[Any],
        token_bytes: NDArray[Any],
        *,
        special_ids: dict[str, int],
        vocab_size: int,
        seed: int = 1234,
        batch_size: int = 32,
    ) -> None:
        if input_ids.ndim != 2 or not len(input_ids) or input_ids.shape != token_bytes.shape:
            raise InputError(
                f"validation input_ids {input_ids.shape} and token_bytes {token_bytes.shape} must be two equal tables"
            )
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be 1 or more")
        self.pad_id, self.mask_id = special_ids["pad"], special_ids["mask"]
        self.vocab_size = vocab_size
        self.batch_size = batch_size
        self._input_ids, self._token_bytes = input_ids, token_bytes
        self._generator = torch.Generator().manual_seed(seed)
        self._blocks: list[_Block] = []

    def __len__(self) -> int:
        return len(self._input_ids)

    def run(
        self,
        model: Any,
        *,
        device: torch.device | str,
        rank: int = 0,
        world_size: int = 1,
        reduce_sum: Callable[[Tensor], Tensor] | None = None,
        max_blocks: int | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> dict[str, Any]:
        """Score the model on the first `max_blocks` blocks, of which each rank takes every world_size-th.

        Args:
            model: a masked language model on `device`; its mode is left as it was, its compiled call is not used.
            reduce_sum: sums a float64 tensor [5] on the CPU over the ranks; called exactly once on every rank.
            should_stop: polled before each batch; True ends this rank's share early.

        Returns:
            loss (nats per selected token), perplexity, accuracy, bits_per_byte, tokens, blocks; and `complete`, False
            when it was stopped.
        """
        count = len(self) if max_blocks is None else min(max_blocks, len(self))
        if count < 1:
            raise InputError(f"max_blocks={max_blocks} must be 1 or more")
        totals = torch.zeros(5, dtype=torch.float64)  # nats, hits, tokens, bytes, blocks
        inner = _unwrap(model)
        modes = [(module, module.training) for module in inner.modules()]
        inner.eval()
        try:
            with torch.no_grad(), torch.autocast(torch.device(device).type, enabled=False):
                for blocks, counted in self._batches(count, rank, world_size):
                    if should_stop is not None and should_stop():
                        break
                    totals += self._score(blocks, counted, _direct(inner), device)
        finally:
            for module, training in modes:
                module.training = training
        return _result(totals if reduce_sum is None else reduce_sum(totals), count)

    def _batches(self, count: int, rank: int, world_size: int) -> Iterator[tuple[list[_Block], int]]:
        """Batches of similar length with how many of their blocks count.

        All ranks get as many batches and blocks, for collectives inside the forward: one that is short repeats block 0.
        """
        self._corrupt(count)
        mine = self._blocks[rank:count:world_size]
        mine.sort(key=lambda block: len(block.inputs))
        short = -(-count // world_size) - len(mine)
        mine += self._blocks[:1] * short
        for start in range(0, len(mine), self.batch_size):
            blocks = mine[start : start + self.batch_size]
            yield blocks, min(len(blocks), len(mine) - short - start)

    def _corrupt(self, count: int) -> None:
        """Draw the corruption of the first `count` blocks in their order: a longer run begins like a shorter one."""
        for index in range(len(self._blocks), count):
            row = np.asarray(self._input_ids[index], dtype=np.int64)
            size = int((row != self.pad_id).sum())
            if size < 3:
                raise InputError(f"validation block {index} holds {size} tokens: it needs [CLS], text and [SEP]")
            ids = torch.from_numpy(row[:size].copy())
            scores = torch.rand(size, generator=self._generator)
            scores[0] = scores[-1] = 2.0  # [CLS] and [SEP] come last
            chosen = scores.argsort()[: max(1, round(_RATE * (size - 2)))]
            action = torch.rand(size, generator=self._generator)[chosen]
            noise = torch.randint(self.vocab_size, (size,), generator=self._generator)[chosen]
            labels, inputs = ids[chosen], ids.clone()
            kept = torch.where(action < _REPLACED, noise, labels)
            inputs[chosen] = torch.where(action < _MASKED, self.mask_id, kept)
            nbytes = int(np.asarray(self._token_bytes[index], dtype=np.int64)[chosen.numpy()].sum())
            self._blocks.append(_Block(inputs, chosen, labels, nbytes))

    def _score(self, blocks: list[_Block], counted: int, forward: _Forward, device: torch.device | str) -> Tensor:
        """Return nats, hits, tokens, bytes and blocks of the first `counted` blocks of a batch: float64 [5]."""
        longest = max(len(block.inputs) for block in blocks)
        width = min(-(-longest // _WIDTH_STEP) * _WIDTH_STEP, self._input_ids.shape[1])
        slots = max(len(block.positions) for block in blocks)
        ids = torch.full((len(blocks), width), self.pad_id)
        mask = torch.zeros((len(blocks), width), dtype=torch.long)  # not from the ids: a random token may be [PAD]
        positions = torch.zeros((len(blocks), slots), dtype=torch.long)
        labels = torch.full((len(blocks), slots), -100)
        for i, block in enumerate(blocks):
            ids[i, : len(block.inputs)] = block.inputs
            mask[i, : len(block.inputs)] = 1
            positions[i, : len(block.positions)] = block.positions
            if i < counted:
                labels[i, : len(block.labels)] = block.labels
        logits = forward(ids.to(device), mask.to(device), positions.to(device))
        on = (labels != -100).flatten().to(device)
        logits, wanted = logits.flatten(0, -2)[on].float(), labels.flatten().to(device)[on]
        nats = F.cross_entropy(logits, wanted, reduction="sum").item()
        hits = (logits.argmax(-1) == wanted).sum().item()
        nbytes = sum(block.nbytes for block in blocks[:counted])
        return torch.tensor([nats, hits, len(wanted), nbytes, counted], dtype=torch.float64)


def _unwrap(model: Any) -> Any:
    """The model inside DistributedDataParallel, a DeepSpeed engine or torch.compile's wrapper."""
    while isinstance(getattr(model, "module", None), torch.nn.Module):
        model = model.module
    return getattr(model, "_orig_mod", model)


def _direct(model: Any) -> _Forward:
    """Return the forward of a plain model, past what Accelerate or torch.compile put around its call."""
    if hasattr(model, "masked_logits"):
        return model.masked_logits

    def dense(ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        logits = type(model).forward(model, input_ids=ids, attention_mask=mask).logits
        return logits[torch.arange(len(ids), device=ids.device)[:, None], positions]

    return dense


def _result(totals: Tensor, wanted_blocks: int) -> dict[str, Any]:
    """Return the scores of summed totals; nan where nothing was scored."""
    nats, hits, tokens, nbytes, blocks = totals.tolist()
    loss = nats / tokens if tokens else math.nan
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 50.0)),
        "accuracy": hits / tokens if tokens else math.nan,
        "bits_per_byte": nats / math.log(2) / nbytes if nbytes else math.nan,
        "tokens": int(tokens),
        "blocks": int(blocks),
        "complete": int(blocks) == wanted_blocks,
    }

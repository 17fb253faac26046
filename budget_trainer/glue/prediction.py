"""The outputs of a classifier for all rows of a split, each exactly once, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from budget_trainer.agreement import Agreement
from budget_trainer.errors import StopAsked
from budget_trainer.glue.encoding import Rows

POLL_EVERY = 20  # batches between two looks at whether a signal has come


class Predictor:
    """Runs a model over rows, longest first, shared among the ranks.

    Every rank does the same number of batches, so that all look at the signals together; what a rank does beyond its share is
    thrown away. `dtype` is that of autocast, None for none.
    """

    def __init__(
        self,
        collate: Callable[[list[dict[str, Any]]], Any],
        batch_size: int,
        device: torch.device,
        agreement: Agreement,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.collate, self.batch_size, self.device = collate, batch_size, device
        self.agreement, self.dtype = agreement, dtype

    def logits(self, model: Any, rows: Rows, batches: int | None = None) -> np.ndarray:
        """Float32 [len(rows), classes], in the order of the rows, the same on every rank.

        Only the first `batches` of each rank with `batches` (the longest rows; the others are zeros): to measure. Raises
        StopAsked on all ranks where a signal has come to any of them.
        """
        channel = self.agreement.channel
        order, share = rows.longest_first(), self.batch_size * channel.world_size
        steps = -(-len(rows) // share)
        found: list[tuple[np.ndarray, np.ndarray]] = []
        was_training = model.training
        model.eval()
        try:
            for step in range(steps if batches is None else min(batches, steps)):
                if step % POLL_EVERY == POLL_EVERY - 1 and self.agreement.wants_stop():
                    raise StopAsked(f"{self.agreement.stop_asked_by} during an evaluation")
                begin = step * share + channel.rank * self.batch_size
                mine = order[begin : begin + self.batch_size]
                outputs = self._forward(model, rows, mine if len(mine) else order[:1])
                found.append((mine, outputs[: len(mine)]))
        finally:
            model.train(was_training)
        return self._joined(found, len(rows))

    def _forward(self, model: Any, rows: Rows, numbers: np.ndarray) -> np.ndarray:
        batch = self.collate([rows[int(number)] for number in numbers])
        inputs = {name: tensor.to(self.device) for name, tensor in batch.items() if name != "labels"}
        with torch.no_grad(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return model(**inputs).logits.float().cpu().numpy()

    def _joined(self, found: list[tuple[np.ndarray, np.ndarray]], rows: int) -> np.ndarray:
        mine = tuple(np.concatenate(part) for part in zip(*found, strict=True))
        parts = self.agreement.channel.gather(mine)
        joined = np.zeros((rows, parts[0][1].shape[1]), dtype=np.float32)
        for numbers, outputs in parts:
            joined[numbers] = outputs
        return joined

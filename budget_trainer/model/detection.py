"""Replaced-token detection beside the masked loss: at every position, is this the token of the text?

ELECTRA's second loss (Clark et al., ICLR 2020, arXiv 2003.10555) without its generator: in blocks that hold passages twice the
masking draws tokens that follow the same token elsewhere in the corpus (`masking.Bigrams`), so that the other copy tells
what was replaced, and the encoder goes on predicting all that was chosen. The last layer then learns at all positions, which
is where fine-tuning reads it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ReplacedTokenDetection(nn.Module):
    """A head of two maps on the last hidden states, [B, L, H] to [B, L], and its loss; it is not part of a saved model.

    Args:
        width: H.
        weight: what the loss counts beside the masked one at the beginning, above 0; `fall` lowers it.
        special_ids: ids of the tokens named pad, cls, sep and mask; what shows one of them is not asked.
        std, seed: standard deviation and seed of the initial weights.
    """

    special: Tensor
    strength: Tensor  # the weight of now

    def __init__(self, width: int, weight: float, special_ids: Mapping[str, int], std: float, seed: int) -> None:
        super().__init__()
        self.weight, self.dense, self.score = weight, nn.Linear(width, width), nn.Linear(width, 1)
        chance = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in (self.dense, self.score):
                layer.weight.normal_(0.0, std, generator=chance)
                layer.bias.zero_()
        ids = [special_ids[name] for name in ("pad", "cls", "sep", "mask")]
        self.register_buffer("special", torch.tensor(ids), persistent=False)
        self.register_buffer("strength", torch.tensor(float(weight)), persistent=False)

    def fall(self, progress: float) -> None:
        """Make the weight that of `progress` in [0, 1]: it falls linearly to 0, so that the end is the masked loss's alone."""
        self.strength.fill_(self.weight * (1 - progress))

    def forward(self, hidden: Tensor, input_ids: Tensor, masked_positions: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross entropy over the positions that are asked, in nats, a float32 scalar.

        Args:
            hidden: [B, L, H].
            input_ids: [B, L], what was shown.
            masked_positions, labels: [B, S], the chosen positions and their tokens; -100 in slots that do not count.
        """
        scores = self.score(F.gelu(self.dense(hidden))).squeeze(-1).float()
        replaced = (self._original(input_ids, masked_positions, labels) != input_ids).float()
        asked = (input_ids[..., None] != self.special).all(-1).float()
        losses = F.binary_cross_entropy_with_logits(scores, replaced, reduction="none")
        return (losses * asked).sum() / asked.sum().clamp(min=1)

    @staticmethod
    def _original(input_ids: Tensor, positions: Tensor, labels: Tensor) -> Tensor:
        """[B, L]: the text. Unused slots write behind its end."""
        length, used = input_ids.shape[1], labels != -100
        places = torch.where(used, positions, length)
        return F.pad(input_ids, (0, 1)).scatter(1, places, labels.clamp(min=0))[:, :length]

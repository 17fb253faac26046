"""Cross entropy of a linear projection: in chunks of rows, so that the logits of all rows never exist at once, or sampled.

The forward pass takes each chunk's logits to their loss and on to the gradients (softmax minus one-hot), while they are
still in the cache; backward only multiplies by the incoming scalar. Every logit is computed once, as without chunks. The
idea is that of fused linear cross entropy (Hsu et al., Liger Kernel, 2024), here in plain PyTorch on any device.

`SampledSoftmax` computes the logits of a part of the vocabulary only, for training. `ReplacedTokenDetection` is the loss that
may stand beside the masked one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

_IGNORED_LABEL = -100
# Bytes that a chunk's float32 logits may take. Each chunk adds a pass over the weight's gradient, each large one leaves the
# cache. Two cores, V = 30,528, H = 256, 640 rows, medians in float32: 142 ms in 6 chunks, 126 in 3, 127 in 1 (all logits
# kept: 199); compiled 164, 143, 147. In bf16, which is slow there: 246 in 6, 231 in 3, 219 in 2, 240 in 1.
_CHUNK_BYTES, _ACCELERATOR_CHUNK_BYTES = 32 * 2**20, 512 * 2**20
IN_PLACE = ("cpu",)  # device types
_ALPHA, _UNSEEN = 0.75, 0.5  # a token is sampled in proportion to (count + _UNSEEN) ** _ALPHA
_UNIT = 2**40  # of a probability: sums of whole numbers are exact


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, chunk_size: int | None = None
) -> Tensor:
    """Return the summed cross entropy of `hidden @ weight.T + bias` in nats, a float32 scalar.

    Equals `F.cross_entropy(F.linear(hidden, weight, bias).float(), labels, reduction="sum")` and its gradients. Matrices
    are multiplied in autocast's precision where that is on; log-sum-exp, loss, and the sums over chunks are in float32.
    The gradients formed in the forward pass are those of the sum, between -1 and 1 per logit: no loss scale is in them.

    Args:
        hidden: [N, H] states, N > 0.
        weight: [V, H], may be tied to the embeddings.
        bias: [V] or None.
        labels: [N] int64; rows labelled -100 do not count.
        chunk_size: rows per chunk, at least 1; by default as many as the cache or memory can hold, and at least 16.
    """
    most = _CHUNK_BYTES if weight.device.type == "cpu" else _ACCELERATOR_CHUNK_BYTES
    size = max(16, most // (4 * len(weight))) if chunk_size is None else chunk_size
    if torch.is_grad_enabled():
        return _LinearCrossEntropy.apply(hidden, weight, bias, labels, size)
    return _loss_and_gradients(hidden, weight, bias, labels, size, (False, False, False))[0]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, chunk_size: int
    ) -> Tensor:
        total, *gradients = _loss_and_gradients(hidden, weight, bias, labels, chunk_size, ctx.needs_input_grad[:3])
        ctx.save_for_backward(*gradients)
        ctx.dtypes = (hidden.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (
            None if gradient is None else (gradient * incoming[0]).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *gradients, None, None


def _loss_and_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, chunk_size: int, needed: tuple[bool, ...]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return the summed loss and its gradients by hidden, weight and bias in float32, None where not `needed`."""
    dtype = matmul_dtype(hidden.device, hidden.dtype)
    matrix = weight.to(dtype)
    forward = _in_place if hidden.device.type in IN_PLACE else _by_log_softmax
    valid = (labels != _IGNORED_LABEL).float()[:, None]
    targets = labels.clamp(min=0)[:, None]
    chunks = -(-len(hidden) // chunk_size)
    rows = -(-len(hidden) // chunks)  # chunks of equal size: no small last one
    total = hidden.new_zeros((), dtype=torch.float32)
    by_hidden: list[Tensor] = []
    by_weight: Tensor | None = None
    by_bias: Tensor | None = None
    for begin in range(0, len(hidden), rows):
        end = min(begin + rows, len(hidden))
        states, on, target = hidden[begin:end].to(dtype), valid[begin:end], targets[begin:end]
        losses, probabilities = forward(states, matrix, bias, target)
        total = total + (losses * on).sum()
        if not any(needed):
            continue
        scores = probabilities.scatter_add_(1, target, -torch.ones_like(on))
        # Rows that do not count are zeroed in the small factors: that saves a pass over the scores.
        errors = scores.to(dtype)
        if needed[0]:
            by_hidden.append((errors @ matrix).float() * on)
        if needed[1]:
            left, right = errors.t(), states * on.to(dtype)
            if by_weight is None:
                by_weight = (left @ right).float()
            elif dtype == torch.float32:
                by_weight = by_weight.addmm_(left, right)
            else:  # the product itself has the precision of its factors
                by_weight = by_weight.add_(left @ right)
        if needed[2]:
            share = scores.t().mv(on.squeeze(1))
            by_bias = share if by_bias is None else by_bias + share
    return total, torch.cat(by_hidden) if by_hidden else None, by_weight, by_bias


def _in_place(states: Tensor, matrix: Tensor, bias: Tensor | None, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return losses [n, 1] and probabilities [n, V] in float32: each step overwrites the last, for few pages of memory."""
    scores = (states @ matrix.t()).float()
    scores = scores if bias is None else scores.add_(bias.float())
    aimed, highest = scores.gather(1, target), scores.amax(1, keepdim=True)
    scores = scores.sub_(highest).exp_()
    norm = scores.sum(1, keepdim=True)
    return norm.log() + highest - aimed, scores.div_(norm)


def _by_log_softmax(states: Tensor, matrix: Tensor, bias: Tensor | None, target: Tensor) -> tuple[Tensor, Tensor]:
    """As `_in_place`, in fewer kernels, for a GPU."""
    scores = F.linear(states, matrix, None if bias is None else bias.to(matrix.dtype)).float().log_softmax(-1)
    return -scores.gather(1, target), scores.exp_()


class SampledSoftmax(nn.Module):
    """The training loss from a sample of the vocabulary, which all rows of a call share.

    Row i with label y has the loss log Z_i - s_iy of its logits s_i, where Z_i = exp(s_iy) + the sum of exp(s_ij) / p_j over
    the sampled j that are not y. Entry j is sampled with the probability p_j = min(1, c * (count_j + 0.5) ** 0.75), so Z_i is
    the softmax's own on average (Horvitz and Thompson 1952) and exact in entries with p_j = 1; log Z_i is a little too low.
    Sampling is systematic (Madow 1949): one random number places equidistant points on the sums of p, so the size of the
    sample is fixed. It comes from torch's generator on the device of the weight. Related are the importance-sampled
    softmax (Bengio and Senecal 2008) and the sampled vocabularies of Jean et al. (2015).

    The sums of p are a buffer of whole numbers that is in no checkpoint.
    """

    _sums: Tensor

    def __init__(self, counts: NDArray[Any], samples: int, rank: int = 0, world_size: int = 1) -> None:
        """Sample `samples` entries of len(counts), by their counts as labels.

        Args:
            counts: [V], one for each row of the weight; those of padding and of special tokens are 0.
            samples: from 1 to V; of V the loss is exact.
            rank, world_size: ranks whose generators agree draw samples that complement each other.
        """
        super().__init__()
        self.samples, self._shift = samples, _UNIT * rank // world_size
        parts = (_inclusion_probabilities(counts, samples) * _UNIT).astype(np.int64)
        parts[parts.argmin()] += samples * _UNIT - parts.sum()  # what rounding has taken: any place will do
        self.register_buffer("_sums", torch.from_numpy(np.cumsum([0, *parts])), persistent=False)

    def forward(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        """Return the estimate of what `linear_cross_entropy` returns, of the same arguments, with its gradients."""
        sampled, share = self._draw()
        ids, sizes = torch.cat([sampled, labels.clamp(min=0)]), [len(sampled), len(labels)]
        # One look-up: its gradient is one tensor of the weight's size. Repeated labels add up in a fixed order on a GPU.
        rows, own = F.embedding(ids, weight).split(sizes)
        offsets, offset = share.new_zeros(len(ids)).split(sizes)
        if bias is not None:
            offsets, offset = F.embedding(ids, bias[:, None]).squeeze(1).float().split(sizes)
        parts = (hidden, rows, own, offsets - share.log(), offset)
        return _SampledCrossEntropy.apply(*parts, labels, sampled)  # type: ignore[no-any-return]

    def _draw(self) -> tuple[Tensor, Tensor]:
        """The entries of a sample [K] in rising order, and the probability of each to be in it, float32 [K]."""
        start = (torch.randint(_UNIT, (), device=self._sums.device) + self._shift) % _UNIT
        points = start + _UNIT * torch.arange(self.samples, device=start.device)
        sampled = torch.searchsorted(self._sums, points, right=True) - 1
        return sampled, (self._sums[sampled + 1] - self._sums[sampled]).float() / _UNIT


class _SampledCrossEntropy(_LinearCrossEntropy):
    """Of hidden [N, H] with the rows [K, H] and offsets [K] of a sample, and each label's own, [N, H] and [N]."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        rows: Tensor,
        own: Tensor,
        offsets: Tensor,
        offset: Tensor,
        labels: Tensor,
        sampled: Tensor,
    ) -> Tensor:
        dtype = matmul_dtype(hidden.device, hidden.dtype)
        states, matrix, valid = hidden.to(dtype), rows.to(dtype), (labels != _IGNORED_LABEL).float()
        target = (hidden.float() * own.float()).sum(1) + offset
        scores = (states @ matrix.t()).float().add_(offsets)
        scores = scores.masked_fill_(sampled == labels[:, None], torch.finfo(torch.float32).min)  # counted as its own
        highest = torch.maximum(scores.amax(1), target)
        scores = scores.sub_(highest[:, None]).exp_()
        norm = scores.sum(1) + (target - highest).exp()
        scores = scores.mul_((valid / norm)[:, None])
        of_target = ((target - highest).exp() / norm - 1) * valid
        errors = scores.to(dtype)
        by_hidden = (errors @ matrix).float() + of_target[:, None] * own.float()
        by_rows, by_own = (errors.t() @ states).float(), of_target[:, None] * hidden.float()
        ctx.save_for_backward(by_hidden, by_rows, by_own, scores.sum(0), of_target)
        ctx.dtypes = (hidden.dtype, rows.dtype, own.dtype, offsets.dtype, offset.dtype)
        return ((norm.log() + highest - target) * valid).sum()


def _inclusion_probabilities(counts: NDArray[Any], samples: int) -> NDArray[np.float64]:
    """min(1, c * (counts + _UNSEEN) ** _ALPHA) with the c that makes their sum `samples`."""
    sizes = (counts + _UNSEEN) ** _ALPHA
    largest = np.sort(sizes)[::-1]
    rest = np.cumsum(largest[::-1])[::-1]  # the sum of what is left behind the n largest
    scales = (samples - np.arange(samples)) / rest[:samples]  # c, where the n largest are always sampled
    fits = scales * largest[:samples] <= 1
    return np.minimum(1, sizes * (scales[fits.argmax()] if fits.any() else np.inf))


def matmul_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The precision that autocast gives matrix products on this device, else `dtype`."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype


def logits_loss(logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """Return the cross entropy of logits [N, V] and labels [N] in nats, divided as `loss_per_label` does."""
    return loss_per_label(F.cross_entropy(logits.float(), labels, reduction="sum"), labels, num_items_in_batch)


def loss_per_label(total: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """Return a summed loss divided by `num_items_in_batch`, or by the number of labels that are not -100."""
    if num_items_in_batch is None:
        return total / (labels != _IGNORED_LABEL).sum().clamp(min=1)
    if isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device, non_blocking=True)
    return total / num_items_in_batch


class ReplacedTokenDetection(nn.Module):
    """At every position, is this the token of the text? A head on the last hidden states, not saved, and its loss.

    ELECTRA's second loss (Clark et al., ICLR 2020, arXiv 2003.10555) without its generator: in blocks that hold passages twice
    the masking draws tokens that follow the same token elsewhere in the corpus (`masking.Bigrams`), so that the other copy
    tells what was replaced, and the encoder goes on predicting all that was chosen. The last layer then learns at all
    positions, which is where fine-tuning reads it.

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

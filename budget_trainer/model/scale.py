"""Move the scale of hidden matrices into the norms before them: another checkpoint of the same function.

A norm forgets the scale of what it reads, and its own weight can carry the scale of the matrix behind it. So a network with
norms before its sublayers has one function and many sets of weights, and AdamW, which moves every weight by about its
rate, treats them differently: matrices that Muon has trained are three to five times as large as BERT's, and the ordinary
rates of fine-tuning hardly move them. (Scale and rate: van Laarhoven 2017, arXiv 1706.05350.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from budget_trainer.core.errors import InputError

_STREAM = re.compile(r"\.layers\.\d+\.(attn|mlp)\.Wo\.(weight|bias)$")  # what is added to the residual stream
_READERS = {"attn.Wqkv.weight": "attn_norm", "mlp.Wi.weight": "mlp_norm"}  # of the stream, each through its norm


def check_scalable(config: Any) -> None:
    """Raise InputError where a model of this config has no norm before each sublayer that this module knows."""
    if config.model_type != "modernbert":
        raise InputError(
            f"final_weight_rms: model_type {config.model_type} cannot have its scales moved into norms; use modernbert, "
            "or leave it out"
        )


def scale_weights(weights: Mapping[str, Tensor], rms: float) -> dict[str, Tensor]:
    """Return the weights of a modernbert with the same outputs, whose hidden matrices have the root mean square `rms`.

    Wqkv and Wi of each layer get it exactly, by the weight of the norm before them. The two Wo get it on average over all
    layers, by the scale of the whole residual stream, which is that of the norm behind the embeddings and is lost at the next
    norm (but for its epsilon). The first layer's Wqkv, which has no norm of its own, takes the stream's scale in.

    Args:
        weights: by the names of the library's state dict; head and embeddings stay as they are.
        rms: above 0, such as 0.02, the standard deviation of BERT's initial weights.
    """
    out = {name: tensor.float() for name, tensor in weights.items()}
    stream = [name for name in out if _STREAM.search(name)]
    matrices = [out[name] for name in stream if name.endswith("weight")]
    shrink = float(torch.stack([matrix.square().mean() for matrix in matrices]).mean().sqrt()) / rms or 1.0
    for name in stream:
        out[name] /= shrink
    base = stream[0].split("layers.")[0]
    for name in (f"{base}embeddings.norm.weight", f"{base}embeddings.norm.bias"):
        if name in out:
            out[name] /= shrink
    for name in list(out):
        reader = next((reader for reader in _READERS if name.endswith(reader)), None)
        if reader is None:
            continue
        norm = name.removesuffix(reader) + _READERS[reader]
        if f"{norm}.weight" not in out:  # the first layer reads the embeddings' norm
            out[name] *= shrink
            continue
        scale = float(out[name].square().mean().sqrt()) / rms or 1.0  # zeros have no scale to move
        out[name] /= scale
        for part in (f"{norm}.weight", f"{norm}.bias"):
            if part in out:
                out[part] *= scale
    return {name: tensor.to(weights[name].dtype) for name, tensor in out.items()}

"""FLOPs and parameters of model sizes around the recipe's, without memory for their weights."""

from __future__ import annotations

import json
from typing import Any

import torch

from budget_trainer.checked_recipe import Recipe
from budget_trainer.data import DataFolder
from budget_trainer.flops import model_flops_per_token
from budget_trainer.modeling import build_model
from budget_trainer.planning.sizes import heads_and_inner, neighbours


def shapes_around(recipe: Recipe, data: DataFolder, slots: int) -> list[dict[str, Any]]:
    """The recipe's shape and standard ones: `layers`, `width`, `heads`, `inner`, `parameters`, `body_parameters` (without
    embeddings and head), `flops_per_token`, `own`. Empty for a model that brings its own shape (model_name_or_path)."""
    m = recipe.model
    if m.model_name_or_path is not None:
        return []
    rows = []
    for layers, width in neighbours(m.num_hidden_layers, m.hidden_size):
        own = (layers, width) == (m.num_hidden_layers, m.hidden_size)
        heads, inner = heads_and_inner(width, m.hidden_size, m.num_attention_heads, m.intermediate_size)
        if own:
            heads, inner = m.num_attention_heads, m.intermediate_size
        with torch.device("meta"):
            model = build_model(
                recipe.model_type,
                vocab_size=data.vocab_size,
                special_ids=data.special_ids,
                max_position_embeddings=m.max_position_embeddings,
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=inner,
                hidden_act=m.hidden_act,
                type_vocab_size=m.type_vocab_size,
                model_config=json.loads(m.model_config) if m.model_config else None,
                add_nsp=recipe.add_nsp,
            )
        model.sparse_last_layer = m.sparse_last_layer
        encoder: Any = getattr(model.base_model, "encoder", None) or model.base_model.layers
        rows.append(
            {
                "layers": layers,
                "width": width,
                "heads": heads,
                "inner": inner,
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "body_parameters": sum(parameter.numel() for parameter in encoder.parameters()),
                "flops_per_token": model_flops_per_token(model, data.block_size, slots),
                "own": own,
            }
        )
    return rows

"""From a recipe's keys to a native Transformers config and masked language model, with sparse prediction (see `sparse`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from budget_trainer.core.errors import InputError
from budget_trainer.model.next_sentence import pair_class
from budget_trainer.model.sparse import HEADS, sparse_class
from budget_trainer.model.types import ALIASES

# Their position numbers start behind the padding id.
_OFFSET_POSITIONS = {"camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "roberta"}
_OFFSET_POSITIONS |= {"roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"}
_FIXED_OFFSETS = {"mpnet": 2}  # ... or behind the 1 that the class takes for it
# Our key -> the names that configs give it; every name that a config has is set.
_NATIVE_NAMES = {
    "hidden_dropout_prob": ("hidden_dropout_prob", "mlp_dropout", "embedding_dropout", "dropout"),
    "attention_probs_dropout_prob": ("attention_probs_dropout_prob", "attention_dropout"),
    "hidden_act": ("hidden_act", "hidden_activation", "activation"),
    "layer_norm_eps": ("layer_norm_eps", "norm_eps", "rms_norm_eps"),
    "intermediate_size": ("intermediate_size", "hidden_dim"),
}
SPECIAL_NAMES = {
    "pad": ("pad_token_id",),
    "cls": ("cls_token_id", "bos_token_id"),
    "sep": ("sep_token_id", "eos_token_id"),
    "mask": ("mask_token_id",),
}
# Keys that config classes take without declaring them.
_UNDECLARED_KEYS = {"attn_implementation", "global_attn_every_n_layers", "global_rope_theta", "local_rope_theta"}


def _build_config(model_type: str, special_ids: Mapping[str, int], recipe: dict[str, Any]) -> PretrainedConfig:
    """Return the native config of a recipe with `vocab_size`; see `build_model` for the other keys and the errors."""
    model_type = ALIASES.get(model_type, model_type)
    if model_type not in CONFIG_MAPPING or CONFIG_MAPPING[model_type] not in MODEL_FOR_MASKED_LM_MAPPING:
        raise InputError(
            f"model_type={model_type!r} has no masked-language-model head; use one of bert-mlm, {', '.join(HEADS)}, or "
            "another type of AutoModelForMaskedLM"
        )
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        if isinstance(recipe.get(key), int) and recipe[key] < 1:
            raise InputError(f"{key}={recipe[key]} must be 1 or more")
    width, heads = recipe.get("hidden_size"), recipe.get("num_attention_heads")
    if isinstance(width, int) and isinstance(heads, int) and width % heads:
        raise InputError(f"num_attention_heads={heads} does not divide hidden_size={width}; change one of them")
    config_class = CONFIG_MAPPING[model_type]
    known = {field.name for field in fields(config_class)} | set(config_class.attribute_map)
    model_config = recipe.pop("model_config", None) or {}
    positions = recipe.pop("max_position_embeddings") + position_offset(model_type, special_ids["pad"])
    values: dict[str, Any] = {"vocab_size": recipe.pop("vocab_size"), "max_position_embeddings": positions}
    for key, value in recipe.items():
        values |= _native_values(key, value, known, model_type)
    for name, keys in SPECIAL_NAMES.items():
        values |= {key: special_ids[name] for key in keys if key in known}
    for key in model_config:
        if key not in known | _UNDECLARED_KEYS and not isinstance(getattr(config_class, key, None), property):
            raise InputError(f"model_config key {key!r} is unknown to {config_class.__name__}: remove or correct it")
    try:
        return config_class(**values | model_config)
    except Exception as error:  # the library's strict dataclasses have error classes of their own
        reason = " ".join(str(error).split())
        raise InputError(f"model_type={model_type!r} refuses its configuration: {reason}") from error


def _native_values(key: str, value: Any, known: set[str], model_type: str) -> dict[str, Any]:
    """A recipe's key under the names that the config has; None keeps the library's default."""
    if value is None:
        return {}
    found = {name: value for name in _NATIVE_NAMES.get(key, (key,)) if name in known}
    if not found and not (key.endswith("dropout_prob") and value == 0):
        fix = "set it to 0" if key.endswith("dropout_prob") else "leave it out (null in a recipe)"
        raise InputError(f"{key}={value!r} has no counterpart in model_type={model_type!r}: {fix}")
    return found


def position_offset(model_type: str, pad_id: int | None) -> int:
    """Rows of the position table that no token uses, because positions start behind the padding's number."""
    if model_type in _OFFSET_POSITIONS:
        return (pad_id or 0) + 1
    return _FIXED_OFFSETS.get(model_type, 0)


def check_positions(config: PretrainedConfig, longest: int, field: str) -> None:
    """Refuse blocks of `longest` tokens for a model with fewer positions; `field` is the flag that it comes from."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:  # no table, no limit
        return
    positions -= position_offset(config.model_type, config.pad_token_id)
    if positions < longest:
        raise InputError(
            f"{field}: this {config.model_type} takes {positions} tokens, the longest block of data_dir has {longest}; "
            "give it more positions, or prepare shorter blocks"
        )


# exp(-10000) is 0 in every precision, so a padded row has no probability and no gradient; fp16 still holds the number.
PADDED_ROW_BIAS = -1e4


def build_model(
    model_type: str,
    *,
    vocab_size: int,
    special_ids: Mapping[str, int],
    pad_vocab_to_multiple_of: int = 64,
    sparse_mask_prediction: bool = True,
    add_nsp: bool = False,
    seed: int = 42,
    **recipe: Any,
) -> Any:
    """Return a new model of a recipe, initialised by the stock class from the seed alone.

    Args:
        model_type: bert-mlm, one of `sparse.HEADS`, or any type that AutoModelForMaskedLM knows.
        vocab_size: len(tokenizer); rows are added up to a multiple of `pad_vocab_to_multiple_of` and never predicted.
        special_ids: token ids named pad, unk, cls, sep and mask.
        sparse_mask_prediction: False computes the logits of every position first; same loss, for comparison.
        add_nsp: with the pooler and head of next-sentence prediction (bert and megatron-bert; see `next_sentence`).
        recipe: `max_position_embeddings` (the longest block, in tokens; RoBERTa's offset is added here); hidden_size,
            num_hidden_layers, num_attention_heads and intermediate_size; hidden_act, layer_norm_eps and type_vocab_size,
            where None keeps the default of the model type; hidden_dropout_prob and attention_probs_dropout_prob (0.1),
            initializer_range (0.02); and model_config, further keys of the native config, verbatim.

    Returns:
        A PreTrainedModel on the CPU, in float32 and training mode.

    Raises:
        InputError: an unknown type or key, or a value that the config class refuses.
    """
    if pad_vocab_to_multiple_of < 1:
        raise InputError(f"pad_vocab_to_multiple_of={pad_vocab_to_multiple_of} must be 1 or more")
    padded = -(-vocab_size // pad_vocab_to_multiple_of) * pad_vocab_to_multiple_of
    # What a recipe need not say: the paper's values, whatever the model type's own are.
    paper = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02}
    config = _build_config(model_type, special_ids, paper | recipe | {"vocab_size": padded})
    cls = _class(config, add_nsp)
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
        torch.default_generator.manual_seed(seed)
        try:
            model = cls(config)
        except (AssertionError, RuntimeError, ValueError) as error:  # some classes fix sizes that their configs do not
            reason = " ".join(str(error).split())
            raise InputError(f"model_type={model_type!r} cannot be built with these sizes: {reason}") from error
    model.sparse_mask_prediction = sparse_mask_prediction
    bias = _output_bias(model)
    if bias is not None:
        with torch.no_grad():
            bias[vocab_size:] = PADDED_ROW_BIAS
    return model.train()


def _class(config: PretrainedConfig, add_nsp: bool) -> Any:
    return pair_class(config) if add_nsp else sparse_class(MODEL_FOR_MASKED_LM_MAPPING[type(config)])


def load_pretrained(
    path: str, *, sparse_mask_prediction: bool = True, add_nsp: bool = False, seed: int = 42, **config_values: Any
) -> Any:
    """Return the model of a checkpoint, to continue its training: safetensors only, no remote code, float32.

    Args:
        path: a folder, or a model's name on the Hub.
        sparse_mask_prediction, add_nsp: as in `build_model`.
        seed: of weights that the checkpoint lacks, such as those of `add_nsp`.
        config_values: recipe keys to change, such as hidden_dropout_prob=0.0.

    Raises:
        InputError: the checkpoint is no masked language model, or a key does not apply to it.
    """
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise InputError(
            f"model_name_or_path={path} is a {config.model_type!r}, which has no masked-language-model head; give a "
            "checkpoint of a masked language model"
        )
    known = {field.name for field in fields(config)}
    for key, value in config_values.items():
        config.update(_native_values(key, value, known, config.model_type))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = _class(config, add_nsp).from_pretrained(
            path, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    model.sparse_mask_prediction = sparse_mask_prediction
    return model.train()


def _output_bias(model: Any) -> Any:
    """The bias [V] of the vocabulary projection, or None where the model has none."""
    return getattr(model.get_output_embeddings(), "bias", None)


def make_model(
    path: str | None, model_type: str, *, vocab_size: int, longest_block: int, new: Mapping[str, Any], **options: Any
) -> Any:
    """The model that a run begins with: of `load_pretrained` where there is a path, else of `build_model` with `new` too.

    Raises:
        InputError: as these two do; the folder cannot be read; the model has fewer tokens or positions than the data.
    """
    if path is None:
        model = build_model(model_type, vocab_size=vocab_size, **new, **options)
    else:
        try:
            model = load_pretrained(path, **options)
        except OSError as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"model_name_or_path: {path} cannot be loaded ({reason}); give a checkpoint's folder"
            ) from None
        if model.config.vocab_size < vocab_size:
            raise InputError(
                f"model_name_or_path: {path} has a vocabulary of {model.config.vocab_size}, the data folder one of "
                f"{vocab_size}; prepare the data with the model's own tokenizer"
            )
    check_positions(model.config, longest_block, "max_position_embeddings" if path is None else "model_name_or_path")
    return model

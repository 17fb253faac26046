"""From a recipe's keys to a native Transformers config and masked language model, with sparse prediction (see `sparse`)."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from budget_trainer.core.errors import InputError
from budget_trainer.model.checkpoint import (
    check_loaded,
    choose_language,
    own_tokens,
    read_config,
    readable,
    resolve_model,
)
from budget_trainer.model.next_sentence import pair_class
from budget_trainer.model.sparse import HEADS, sparse_class
from budget_trainer.model.types import ALIASES

log = logging.getLogger(__name__)

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


def _build_config(
    model_type: str, special_ids: Mapping[str, int], recipe: dict[str, Any], defaults: Collection[str]
) -> PretrainedConfig:
    """Return the native config of a recipe with `vocab_size`; see `build_model` for the other keys and the errors."""
    model_type = ALIASES.get(model_type, model_type)
    if model_type not in CONFIG_MAPPING or CONFIG_MAPPING[model_type] not in MODEL_FOR_MASKED_LM_MAPPING:
        raise InputError(
            f"model_type={model_type!r} has no masked-language-model head; use one of bert-mlm, {', '.join(HEADS)}, or "
            "another type of AutoModelForMaskedLM"
        )
    config_class = CONFIG_MAPPING[model_type]
    known = {field.name for field in fields(config_class)} | set(config_class.attribute_map)
    wrong = []  # all are told at once
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        if isinstance(recipe.get(key), int) and recipe[key] < 1:
            wrong.append(f"{key}={recipe[key]} must be 1 or more")
    width, heads = recipe.get("hidden_size"), recipe.get("num_attention_heads")
    if (
        isinstance(width, int)
        and isinstance(heads, int)
        and heads > 0
        and width % heads
        and "num_attention_heads" in known
    ):
        wrong.append(f"num_attention_heads={heads} does not divide hidden_size={width}; change one of them")
    model_config = recipe.pop("model_config", None) or {}
    positions = recipe.pop("max_position_embeddings") + _position_offset(model_type, special_ids["pad"])
    values: dict[str, Any] = {"vocab_size": recipe.pop("vocab_size"), "max_position_embeddings": positions}
    native, refused = _native_values(recipe, defaults, known, model_type)
    values |= native
    for name, keys in SPECIAL_NAMES.items():
        values |= {key: special_ids[name] for key in keys if key in known}
    for key in model_config:
        if key not in known | _UNDECLARED_KEYS and not isinstance(getattr(config_class, key, None), property):
            wrong.append(f"model_config key {key!r} is unknown to {config_class.__name__}: remove or correct it")
    if wrong or refused:
        raise InputError("; ".join([*wrong, *refused]))
    try:
        config = config_class(**values | model_config)
    except Exception as error:  # the library's strict dataclasses have error classes of their own
        reason = " ".join(str(error).split())
        raise InputError(f"model_type={model_type!r} refuses its configuration: {reason}") from error
    choose_language(config, "model_config: xmod", 'add {"default_language": "en_XX"}')
    return config


def _native_values(
    recipe: Mapping[str, Any], defaults: Collection[str], known: set[str], model_type: str
) -> tuple[dict[str, Any], list[str]]:
    """A recipe's keys under the names that the config has, and a refusal of each that has none there.

    None, and those of `defaults` that have none, keep the library's default.
    """
    values: dict[str, Any] = {}
    refused = []
    for key, value in recipe.items():
        found = {name: value for name in _NATIVE_NAMES.get(key, (key,)) if name in known and value is not None}
        values |= found
        if not (found or value is None or key in defaults or (key.endswith("dropout_prob") and value == 0)):
            fix = "set it to 0" if key.endswith("dropout_prob") else "leave it out"
            refused.append(f"{key}={value!r} has no counterpart in model_type={model_type!r}: {fix}")
    return values, refused


def _position_offset(model_type: str, pad_id: int | None) -> int:
    """Rows of the position table that no token uses, because positions start behind the padding's number."""
    if model_type in _OFFSET_POSITIONS:
        return (pad_id or 0) + 1
    return _FIXED_OFFSETS.get(model_type, 0)


def most_tokens(config: PretrainedConfig) -> float:
    """The length of the longest text that a model takes: that of its position table, or infinite."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return math.inf
    return positions - _position_offset(config.model_type, config.pad_token_id)


def _check_positions(config: PretrainedConfig, longest: int, field: str) -> None:
    """Refuse blocks of `longest` tokens for a model with fewer positions; `field` is the flag that it comes from."""
    if (positions := most_tokens(config)) < longest:
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
    defaults: Collection[str] = (),
    **recipe: Any,
) -> Any:
    """Return a new model of a recipe, initialised by the stock class from the seed alone.

    Args:
        model_type: bert-mlm, one of `sparse.HEADS`, or any type that AutoModelForMaskedLM knows.
        vocab_size: `vocabulary_size(tokenizer)`; rows up to a multiple of `pad_vocab_to_multiple_of` are never predicted.
        special_ids: token ids named pad, unk, cls, sep and mask.
        sparse_mask_prediction: False computes the logits of every position first; same loss, for comparison.
        add_nsp: with the pooler and head of next-sentence prediction (bert and megatron-bert; see `next_sentence`).
        defaults: keys of `recipe` that nobody asked for: where the model type has none of that name, its own default stays.
        recipe: `max_position_embeddings` (the longest block, in tokens; RoBERTa's offset is added here); hidden_size,
            num_hidden_layers, num_attention_heads and intermediate_size; hidden_act, layer_norm_eps and type_vocab_size,
            where None keeps the default of the model type; hidden_dropout_prob and attention_probs_dropout_prob (0.1),
            initializer_range (0.02); and model_config, further keys of the native config, verbatim.

    Returns:
        A PreTrainedModel on the CPU, in float32 and training mode.

    Raises:
        InputError: all unknown keys and impossible sizes in one line; an unknown type; what the config class refuses.
    """
    if pad_vocab_to_multiple_of < 1:
        raise InputError(f"pad_vocab_to_multiple_of={pad_vocab_to_multiple_of} must be 1 or more")
    padded = _padded(vocab_size, pad_vocab_to_multiple_of)
    # What a recipe need not say: the paper's values, whatever the model type's own are.
    paper = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02}
    defaults = {*defaults, *(paper.keys() - recipe.keys())}
    config = _build_config(model_type, special_ids, paper | recipe | {"vocab_size": padded}, defaults)
    cls = _class(config, add_nsp)
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
        torch.default_generator.manual_seed(seed)
        try:
            model = cls(config)
        except (AssertionError, RuntimeError, ValueError) as error:  # some classes fix sizes that their configs do not
            reason = " ".join(str(error).split())
            raise InputError(f"model_type={model_type!r} cannot be built with these sizes: {reason}") from error
    model.sparse_mask_prediction = sparse_mask_prediction
    _silence_padding(model, vocab_size)
    return model.train()


def _padded(vocab_size: int, multiple: int = 64) -> int:
    return -(-vocab_size // multiple) * multiple


def _silence_padding(model: Any, vocab_size: int) -> None:
    """Rows beyond the vocabulary are never predicted."""
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is not None:
        with torch.no_grad():
            bias[vocab_size:] = PADDED_ROW_BIAS


def _class(config: PretrainedConfig, add_nsp: bool) -> Any:
    return pair_class(config) if add_nsp else sparse_class(MODEL_FOR_MASKED_LM_MAPPING[type(config)])


def load_pretrained(
    path: str,
    *,
    sparse_mask_prediction: bool = True,
    add_nsp: bool = False,
    seed: int = 42,
    defaults: Collection[str] = (),
    whole: bool = False,
    field: str = "model_name_or_path",
    **config_values: Any,
) -> Any:
    """Return the model of a checkpoint, to continue its training: safetensors only, no remote code, float32.

    Args:
        path: a folder, or a model's name on the Hub.
        sparse_mask_prediction, add_nsp, defaults: as in `build_model`.
        seed: of a head that the checkpoint lacks, such as that of `add_nsp`.
        whole: refuse a checkpoint that lacks its head.
        field: the flag that `path` comes from.
        config_values: recipe keys to change, such as hidden_dropout_prob=0.0.

    Raises:
        InputError: the checkpoint cannot be read, is no masked language model, or lacks weights of its encoder; or keys do
            not apply to it.
    """
    config = read_config(path, field)
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise InputError(
            f"{field}={path} is a {config.model_type!r}, which has no masked-language-model head; give a "
            "checkpoint of a masked language model"
        )
    values, refused = _native_values(config_values, defaults, {f.name for f in fields(config)}, config.model_type)
    if refused:
        raise InputError("; ".join(refused))
    config.update(values)
    with (
        readable(f"{field}: {path} cannot be loaded", "give a checkpoint's folder"),
        torch.random.fork_rng(devices=[]),
    ):
        torch.default_generator.manual_seed(seed)
        model, info = _class(config, add_nsp).from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # `check_loaded` names them
            output_loading_info=True,
        )
    new = check_loaded(model, info, f"{field}: {path}")
    if new and whole:
        raise InputError(
            f"{field}: {path} lacks {len(new)} weights of its head ({new[0]}, ...); give a whole checkpoint"
        )
    if new:
        log.info("%s: %d weights of its head are new (%s, ...)", path, len(new), new[0])
    model.sparse_mask_prediction = sparse_mask_prediction
    return model.train()


def make_model(
    path: str | None,
    model_type: str,
    *,
    vocab_size: int,
    longest_block: int,
    new: Mapping[str, Any],
    tokenizer: Any,
    **options: Any,
) -> Any:
    """The model that a run begins with: of `load_pretrained` where there is a path, else of `build_model` with `new` too.

    Words that were added behind a loaded model's own vocabulary get rows of their own in its embedding; `added_tokens` of the
    model counts them.

    Args:
        vocab_size, longest_block, tokenizer: of the data folder.

    Raises:
        InputError: as these two do; the model has another tokenizer or vocabulary, or fewer positions, than the data.
    """
    if path is None:
        model = build_model(model_type, vocab_size=vocab_size, **new, **options)
        model.added_tokens = 0
    else:
        folder = resolve_model(path, "model_name_or_path")
        model = load_pretrained(str(folder), **options)
        own = own_tokens(folder, tokenizer)
        model.added_tokens = 0
        has, here = (model.config.vocab_size, model.config.pad_token_id), (vocab_size, tokenizer.pad_token_id)
        if own is None and not (vocab_size <= has[0] <= _padded(vocab_size) and has[1] in (None, here[1])):
            why = "has no tokenizer beside it, and {:,} tokens and padding {}; the data folder has {:,} and {}".format(
                *has, *here
            )
            raise InputError(f"model_name_or_path: {path} {why}: prepare the data with the model's own tokenizer")
        if own is None:
            log.info("%s has no tokenizer: that of the data folder is taken for its own", path)
        elif (own := min(own, model.config.vocab_size)) < vocab_size:
            _add_tokens(model, own, vocab_size, options["seed"])
    _check_positions(model.config, longest_block, "max_position_embeddings" if path is None else "model_name_or_path")
    return model


def _add_tokens(model: Any, own: int, vocab_size: int, seed: int) -> None:
    """Draw the rows of new tokens around the mean of the model's own; the rows that pad its vocabulary do not count."""
    rows, grown = max(model.config.vocab_size, _padded(vocab_size)), False
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        with suppress(NotImplementedError):
            model.resize_token_embeddings(own)
            model.resize_token_embeddings(rows)
            with torch.device("meta"):
                asked = type(model)(model.config).state_dict()
            # of esm the library resizes all but a bias
            grown = all(asked[name].shape == tensor.shape for name, tensor in model.state_dict().items())
    if not grown:
        has = f"{model.config.model_type} has {own:,} tokens and takes no more, the data folder has {vocab_size:,}"
        raise InputError(f"model_name_or_path: {has}; prepare the data with the model's own tokenizer")
    _silence_padding(model, vocab_size)
    model.added_tokens = vocab_size - own
    log.info(
        "%d tokens of the data folder are new to the model: its embedding has %d rows now", vocab_size - own, rows
    )

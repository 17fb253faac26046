"""From a recipe and its data to the parts of a run. Nothing here writes to disk."""

from __future__ import annotations

import json
import logging
from functools import cached_property
from typing import Any

import torch

from budget_trainer.budget.channel import ControlChannel
from budget_trainer.config.arguments import RunArguments
from budget_trainer.config.recipe import Recipe, parse_offsets, speed_settings
from budget_trainer.core.errors import InputError
from budget_trainer.data.folder import DataFolder
from budget_trainer.data.masking import MaskingCollator
from budget_trainer.data.order import BlockDataset
from budget_trainer.data.repeated_passages import check_repeated_passages
from budget_trainer.data.whole_words import continues_word
from budget_trainer.model.build import build_model, check_positions, load_pretrained, set_output_bias
from budget_trainer.model.cpu import use_few_bit_dropout
from budget_trainer.model.engine_optimizers import let_deepspeed_step, use_apex, zero_stage
from budget_trainer.model.initialization import cooccurrence_embeddings, set_embeddings, set_offset_heads
from budget_trainer.model.optimizers import OptimizerOptions
from budget_trainer.model.sparse import check_document_mask
from budget_trainer.training.engine import engine_name
from budget_trainer.training.evaluation import PinnedEvaluation

log = logging.getLogger(__name__)
COUNTED_TOKENS_PER_SECOND = 30_000  # of the budget: counting takes about 1 s per million tokens on two cores
MOST_COUNTED_TOKENS = 50_000_000
VERIFY_SHARE = 0.005  # of what a job may use: 3 s of 10 minutes, at about 1 GB/s on a core
# Flags of ModelArguments that `build_model` takes under the same names.
_ARCHITECTURE = (
    *("max_position_embeddings", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("hidden_act", "initializer_range", "type_vocab_size"),
)


class RunParts:
    """What `recipe` makes of the data folder `data` in a process with the TrainingArguments `args`.

    The methods raise InputError where these do not fit each other.
    """

    def __init__(self, recipe: Recipe, args: RunArguments, data: DataFolder) -> None:
        self.recipe, self.args, self.data = recipe, args, data

    @property
    def global_batch_size(self) -> int:
        """Samples of one optimizer step over all processes."""
        args = self.args
        return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size

    # ---- data ----

    @cached_property
    def blocks(self) -> BlockDataset:
        """The training blocks, memory-mapped."""
        masks_documents, pairs = self.recipe.data.document_mask, self.recipe.add_nsp
        columns = self.data.columns_for(document_mask=masks_documents, next_sentence=pairs)
        return self.data.train(seed=self.args.seed, columns=columns)

    def check_data(self) -> None:
        """Refuse a corpus that cannot fill one batch, blocks longer than the model takes, and the plan of another run."""
        recipe, data, batch, longest = self.recipe, self.data, self.global_batch_size, self._longest_block
        if self.blocks.rows < batch:
            raise InputError(
                f"data_dir: {data.path} has {self.blocks.rows} blocks, fewer than one batch of {batch}; lower "
                "per_device_train_batch_size or gradient_accumulation_steps, or prepare more text"
            )
        if recipe.model.model_name_or_path is None and recipe.model.max_position_embeddings < longest:
            raise InputError(
                f"max_position_embeddings: {recipe.model.max_position_embeddings} is below the longest block of {data.path} "
                f"(training {data.block_size}, validation {data.manifest['validation_block_size']}); raise it to {longest}"
            )
        # Refuses curves that these blocks cannot follow, too.
        for _, parts in recipe.stages(data.block_size).sequence_parts:
            check_repeated_passages(recipe.data.twin_probability, data.block_size // int(parts))
        if recipe.plan is not None:
            settings, seconds = speed_settings(recipe.as_dict(self.args)), recipe.total_seconds
            processes = self.args.world_size
            recipe.plan.check(settings, total_seconds=seconds, processes=processes, data=data.fingerprint)

    def check_contents(self, channel: ControlChannel) -> None:
        """Refuse damaged files on all ranks: one process of each machine reads as much as VERIFY_SHARE of the job allows."""
        damaged, share = None, 1.0
        if self.args.local_process_index == 0:
            seconds = min(VERIFY_SHARE * self.recipe.seconds_left(0.0), channel.timeout_seconds / 2)
            try:
                share = self.data.verify(seconds)
            except (InputError, OSError) as error:
                damaged = str(error)
        for message in channel.gather(damaged):
            if message is not None:
                raise InputError(message)
        if share < 1 and self.args.process_index == 0:
            log.info(
                "checksums: %.0f %% of the data compared, the rest would cost too much of the budget", 100 * share
            )

    @property
    def _longest_block(self) -> int:
        return max(self.data.block_size, int(self.data.manifest["validation_block_size"]))

    def make_collator(self) -> MaskingCollator:
        """The masking of the schedule's first stage."""
        recipe, data, d = self.recipe, self.data, self.recipe.data
        train = data.manifest["splits"]["train"]
        return MaskingCollator(
            seed=recipe.training.seed,
            special_ids=data.special_ids,
            vocab_size=data.vocab_size,
            block_size=data.block_size,
            mlm_probability=recipe.stages(data.block_size).at(0.0).mlm_probability,
            mask_replace_prob=d.mask_replace_prob,
            random_replace_prob=d.random_replace_prob,
            max_predictions_per_seq=d.max_predictions_per_seq,
            dup_factor=d.dup_factor,
            has_padding=train["tokens"] < train["rows"] * data.block_size,
            whole_words=continues_word(data.load_tokenizer()) if d.whole_word_mask else None,
            twin_probability=d.twin_probability,
        )

    def make_evaluation(self) -> PinnedEvaluation:
        """The pinned evaluation on the validation blocks."""
        input_ids, token_bytes = self.data.validation_rows()
        return PinnedEvaluation(
            input_ids, token_bytes, special_ids=self.data.special_ids, vocab_size=self.data.vocab_size
        )

    # ---- the model ----

    def make_model(self) -> Any:
        """The model of the recipe: new from the seed, or loaded from `model_name_or_path`, before any training."""
        m = self.recipe.model
        options = {
            "hidden_dropout_prob": m.hidden_dropout_prob,
            "attention_probs_dropout_prob": m.attention_probs_dropout_prob,
            "sparse_mask_prediction": m.sparse_mask_prediction,
            "add_nsp": self.recipe.add_nsp,
            "seed": self.args.seed,
        }
        if m.model_name_or_path is None:
            model, field = self._new_model(options), "max_position_embeddings"
        else:
            model, field = self._load_model(m.model_name_or_path, options), "model_name_or_path"
        check_positions(model.config, self._longest_block, field)
        if m.layer_norm_type == "apex":
            use_apex(model, self.args.device)
        if self.recipe.data.document_mask:
            check_document_mask(model)
        if self.args.device.type == "cpu":
            use_few_bit_dropout(model)
        model.cross_entropy, model.sparse_last_layer = m.cross_entropy, m.sparse_last_layer
        return model

    def _new_model(self, options: dict[str, Any]) -> Any:
        text, data, model_config = self.recipe.model.model_config, self.data, None
        if text is not None:
            try:
                model_config = json.loads(text)
            except ValueError:
                pass
            if not isinstance(model_config, dict):
                raise InputError(
                    f"model_config: {text!r} is not a JSON object; write '{{\"key\": value}}', or a mapping in a recipe"
                )
        sizes = {name: getattr(self.recipe.model, name) for name in _ARCHITECTURE}
        vocabulary: dict[str, Any] = {"vocab_size": data.vocab_size, "special_ids": data.special_ids}
        return build_model(self.recipe.model_type, **vocabulary, **sizes, model_config=model_config, **options)

    def _load_model(self, path: str, options: dict[str, Any]) -> Any:
        try:
            model = load_pretrained(path, **options)
        except OSError as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"model_name_or_path: {path} cannot be loaded ({reason}); give a checkpoint's folder"
            ) from None
        if model.config.vocab_size < self.data.vocab_size:
            raise InputError(
                f"model_name_or_path: {path} has a vocabulary of {model.config.vocab_size}, the data folder one of "
                f"{self.data.vocab_size}; prepare the data with the model's own tokenizer"
            )
        return model

    def initialize_from_corpus(self, model: Any, channel: ControlChannel) -> None:
        """Start a new model closer to the text: output bias at the token frequencies, heads at fixed offsets, counted
        embeddings.

        A resumed run takes its weights from the checkpoint instead, a continued one from `model_name_or_path`.
        """
        m = self.recipe.model
        if m.unigram_bias:
            set_output_bias(model, self.data.unigram_counts())
        if m.offset_heads is not None:
            set_offset_heads(model, parse_offsets(m.offset_heads))
        if m.embedding_init == "cooccurrence":
            size = model.get_input_embeddings().weight.shape[1]
            result = torch.zeros(self.data.vocab_size, size)
            if channel.rank == 0:  # the other ranks receive what the main process has counted
                result = self.count_embeddings(size, self.counted_tokens)
            set_embeddings(model, channel.broadcast(result).numpy(), m.embedding_init_std)

    @property
    def counted_tokens(self) -> int:
        """How many tokens `embedding_init: cooccurrence` counts in this budget: 300 s pay for 9 million."""
        paid_for = min(COUNTED_TOKENS_PER_SECOND * self.recipe.total_seconds, MOST_COUNTED_TOKENS)
        return int(min(paid_for, self.blocks.rows * self.data.block_size))

    def count_embeddings(self, size: int, tokens: int) -> torch.Tensor:
        """Embeddings (vocab_size x `size`) counted over the first `tokens` tokens that training will see."""
        data = self.data
        rows = self.blocks.__getitems__(range(max(1, tokens // data.block_size)))["input_ids"]
        return torch.from_numpy(
            cooccurrence_embeddings(rows, data.vocab_size, size, special_ids=data.special_ids, seed=self.args.seed)
        )

    # ---- the optimizer ----

    def optimizer_options(self) -> OptimizerOptions:
        """The options of the optimizer, checked against the device and the engine."""
        args = self.args
        options = self.recipe.optimizer_options(args, zero_stage(args.deepspeed_plugin))
        sharded = engine_name(args) == "fsdp"
        options.check_engine(args.device.type, fsdp=sharded, max_grad_norm=args.max_grad_norm)
        return options

    def let_deepspeed_step(self) -> None:
        """Let DeepSpeed step the optimizer that `build_optimizer` makes, where it would not do so by itself."""
        if let_deepspeed_step(self.args.deepspeed_plugin, self.recipe.optimizer.optimizer_type):
            if self.args.process_index == 0:
                log.info(
                    "offloading: torch's own optimizer, DeepSpeed's CPU Adam is not built (DS_BUILD_CPU_ADAM=1 pip install)"
                )

    def identity(self, model: Any) -> dict[str, Any]:
        """What must stay the same over all jobs of a run: model, data, order, optimizer, batch. Checkpoints carry it."""
        config = model.config.to_dict()
        skip = {"transformers_version", "dtype", "torch_dtype", "_name_or_path", "architectures", "use_cache"}
        own = {f"model.{key}": value for key, value in json.loads(json.dumps(config)).items() if key not in skip}
        return {
            "data": self.data.fingerprint,
            "seed": self.args.seed,
            "optimizer_type": self.recipe.optimizer.optimizer_type,
            "add_nsp": self.recipe.add_nsp,
            "global_batch_size": self.global_batch_size,
            **own,
        }

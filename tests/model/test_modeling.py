"""The model types: sparse equals dense, ours equals stock, and what is saved is native."""

import copy
import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    MegatronBertForMaskedLM,
    Trainer,
    TrainingArguments,
)

from budget_trainer.core.errors import InputError
from budget_trainer.model.build import (
    PADDED_ROW_BIAS,
    build_model,
    check_positions,
    load_pretrained,
    output_bias,
    parameter_count,
    set_output_bias,
)
from budget_trainer.model.sparse import HEADS, sparse_class

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
VOCAB = 100
FAMILIES = ["bert-mlm", "bert", "roberta", "roberta-prelayernorm", "modernbert", "eurobert"]
DENSE_FAMILIES = ["distilbert", "electra"]


def tiny(model_type, **changes):
    options = {
        "vocab_size": VOCAB,
        "special_ids": SPECIAL,
        "max_position_embeddings": 160,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "seed": 1,
    }
    return build_model(model_type, **options | changes)


def batch(rows=3, length=40, slots=6, padded=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCAB, (rows, length), generator=generator)
    ids[:, 0], ids[:, -1] = SPECIAL["cls"], SPECIAL["sep"]
    positions = torch.stack([torch.randperm(15, generator=generator)[:slots].sort().values + 1 for _ in range(rows)])
    out = {"input_ids": ids, "masked_positions": positions, "labels": ids.gather(1, positions)}
    out["labels"][0, -2:] = -100
    out["masked_positions"][0, -2:] = 0
    if padded:
        ids[1, 20:] = SPECIAL["pad"]
        out["attention_mask"] = (ids != SPECIAL["pad"]).long()
    return out


def loss_and_gradients(model, inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("model_type", FAMILIES + DENSE_FAMILIES)
def test_sparse_prediction_equals_dense(model_type, padded):
    model, inputs = tiny(model_type), batch(padded=padded)
    # Longer than modernbert's local window of 128, so that its mask matters.
    long = batch(length=150, padded=padded)
    for given in (inputs, long):
        model.sparse_mask_prediction = True
        loss, gradients = loss_and_gradients(model, given)
        model.sparse_mask_prediction = False
        dense_loss, dense_gradients = loss_and_gradients(model, given)
        assert loss == pytest.approx(dense_loss, abs=1e-6)
        for name, gradient in gradients.items():
            assert torch.allclose(gradient, dense_gradients[name], atol=1e-6), name
    # B17: the output bias is in the logits, and learns.
    if output_bias(model) is not None:
        assert output_bias(model).grad[:VOCAB].abs().max() > 0


@pytest.mark.parametrize("model_type", FAMILIES)
def test_loss_is_that_of_the_stock_class_on_scattered_labels(model_type):
    model, inputs = tiny(model_type), batch()
    labels = torch.full_like(inputs["input_ids"], -100)
    rows = torch.arange(3)[:, None].expand_as(inputs["labels"])
    used = inputs["labels"] != -100
    labels[rows[used], inputs["masked_positions"][used]] = inputs["labels"][used]
    stock = AutoModelForMaskedLM.from_config(model.config)
    assert type(stock) is not type(model)
    stock.load_state_dict(model.state_dict())
    given = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    expected = stock.eval()(**given, labels=labels).loss
    model.eval()
    assert model(**inputs).loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert model(**given, labels=labels).loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert torch.allclose(model(**given).logits, stock(**given).logits, atol=1e-5)
    returned = model(**inputs, return_logits=True).logits
    wanted = stock(**given).logits.gather(1, inputs["masked_positions"][..., None].expand(-1, -1, 128))
    assert torch.allclose(returned, wanted.flatten(0, 1), atol=1e-5)
    assert model(**inputs).logits is None


def test_num_items_in_batch_divides_the_sum():
    model, inputs = tiny("bert").eval(), batch()
    used = (inputs["labels"] != -100).sum()
    mean = model(**inputs).loss.item()
    for items in (torch.tensor(40), 40):
        assert model(**inputs, num_items_in_batch=items).loss.item() == pytest.approx(
            mean * used.item() / 40, rel=1e-6
        )
    inputs["labels"][:] = -100
    assert model(**inputs).loss.item() == 0.0


class Parts(torch.utils.data.Dataset):
    """Blocks of one big batch, some with fewer labels than others."""

    def __init__(self):
        self.inputs = batch(rows=8, slots=5)
        self.inputs["labels"][5, 1:] = -100

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return {name: tensor[i] for name, tensor in self.inputs.items()}


@pytest.mark.parametrize(("micro", "accumulation"), [(8, 1), (2, 4)])
def test_under_a_plain_trainer_accumulation_does_not_change_the_loss(tmp_path, micro, accumulation):
    model = tiny("bert")
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        logging_steps=1,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        learning_rate=0.0,
        max_grad_norm=1e9,
    )
    trainer = Trainer(model, arguments, train_dataset=Parts())
    assert trainer.model_accepts_loss_kwargs and trainer.label_names == ["labels"]
    expected, gradients = loss_and_gradients(copy.deepcopy(model), Parts().inputs)
    norm = torch.stack([g.norm() for g in gradients.values()]).norm().item()
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(expected, abs=1e-4)
    assert logged["grad_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("padded", [True, False])
def test_fused_megatron_attention_equals_stock(padded):
    model = tiny("megatron-bert").eval()
    stock = MegatronBertForMaskedLM(model.config).eval()
    stock.load_state_dict(model.state_dict())
    inputs = batch(padded=padded)
    given = {k: inputs[k] for k in ("input_ids", "attention_mask") if k in inputs}
    valid = given.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    expected = stock(**given, output_hidden_states=True)
    assert torch.allclose(model(**given).logits[valid], expected.logits[valid], atol=1e-5)
    hidden = model.encode(inputs["input_ids"], inputs.get("attention_mask"))
    assert torch.allclose(hidden[valid], expected.hidden_states[-1][valid], atol=1e-5)
    attentions = model(**given, output_attentions=True).attentions  # falls back to the library's forward
    assert torch.allclose(attentions[1], stock(**given, output_attentions=True).attentions[1], atol=1e-6)


def test_fused_megatron_attention_drops_out_in_training_only():
    model, inputs = tiny("megatron-bert", attention_probs_dropout_prob=0.5), batch()
    assert model(**inputs).loss.item() != model(**inputs).loss.item()
    model.eval()
    assert model(**inputs).loss.item() == model(**inputs).loss.item()


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("model_type", ["bert", "megatron-bert", "roberta", "roberta-prelayernorm", "modernbert"])
def test_training_step_compiles_to_one_graph_and_evaluation_adds_none(model_type, padded):
    torch._dynamo.reset()
    model, inputs = tiny(model_type, hidden_dropout_prob=0.1), batch(padded=padded) | {"num_items_in_batch": 16}
    eager = copy.deepcopy(model).eval()
    model.compile(backend="eager", dynamic=False, fullgraph=True)
    model(**inputs).loss.backward()
    model.eval()
    assert model(**inputs).loss.item() == pytest.approx(eager(**inputs).loss.item(), abs=1e-5)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with torch.no_grad():
        model.masked_logits(inputs["input_ids"][:, :24], None, inputs["masked_positions"][:, :3])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before


LOAD = """
import sys, json, torch
sys.modules["budget_trainer"] = None  # also where the package is installed, nothing of ours can be imported
from transformers import AutoModelForMaskedLM
model = AutoModelForMaskedLM.from_pretrained(sys.argv[1]).eval()
ids, mask = (torch.tensor(x) for x in json.load(open(sys.argv[2])))
with torch.no_grad():
    torch.save(model(input_ids=ids, attention_mask=mask).logits, sys.argv[3])
"""


@pytest.mark.parametrize("model_type", ["bert-mlm", "modernbert", "roberta"])
def test_a_checkpoint_loads_in_stock_transformers_without_us(model_type, tmp_path):
    model, inputs = tiny(model_type).eval(), batch()
    set_output_bias(model, np.arange(VOCAB))
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__]
    assert "auto_map" not in config and config["pad_token_id"] == 0
    (tmp_path / "in.json").write_text(json.dumps([inputs[k].tolist() for k in ("input_ids", "attention_mask")]))
    command = [sys.executable, "-I", "-c", LOAD, tmp_path / "saved", tmp_path / "in.json", tmp_path / "out.pt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    logits = torch.load(tmp_path / "out.pt")
    with torch.no_grad():
        ours = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    valid = inputs["attention_mask"].bool()
    assert torch.allclose(logits[valid], ours[valid], atol=1e-4)
    assert logits[..., VOCAB:].max() < PADDED_ROW_BIAS + 100, "rows that pad the vocabulary can be predicted"
    again = load_pretrained(str(tmp_path / "saved"), hidden_dropout_prob=0.3)
    assert type(again) is type(model) and again.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    dropouts = [module.p for module in again.modules() if isinstance(module, torch.nn.Dropout)]
    assert 0.3 in dropouts


# Types without a sparse head of their own here: all logits first, then the masked positions of them.
OTHER_TYPES = ["albert", "convbert", "deberta-v2", "distilbert", "electra", "ernie", "mpnet", "rembert"]


@pytest.mark.parametrize("model_type", OTHER_TYPES)
def test_any_masked_language_model_trains_and_reloads(model_type, tmp_path):
    model, inputs = tiny(model_type), batch()
    assert model_type not in HEADS
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = loss_and_gradients(model, inputs)[0]
    optimizer.step()
    assert loss_and_gradients(model, inputs)[0] < before
    model.eval().save_pretrained(tmp_path)
    stock = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert type(stock) is not type(model) and type(stock).__name__ == type(model).__name__
    given = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    valid = inputs["attention_mask"].bool()
    with torch.no_grad():
        assert torch.allclose(stock(**given).logits[valid], model(**given).logits[valid], atol=1e-5)
    again = load_pretrained(str(tmp_path)).eval()
    assert again(**inputs).loss.item() == pytest.approx(model(**inputs).loss.item(), abs=1e-5)


@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("model_type", sorted({*FAMILIES, *OTHER_TYPES, "xlm-roberta", "camembert", "esm", "ibert"}))
def test_the_longest_block_fits_and_one_more_token_is_refused(model_type, pad):
    model = tiny(model_type, special_ids=SPECIAL | {"pad": pad, "unk": 1 - pad}, max_position_embeddings=24)
    model(**batch(length=24, padded=False)).loss.backward()
    check_positions(model.config, 24, "max_position_embeddings")
    with pytest.raises(
        InputError, match=f"^model_name_or_path: this {model.config.model_type} takes 24 tokens, .* 25; "
    ):
        check_positions(model.config, 25, "model_name_or_path")


def test_stock_checkpoints_can_be_continued(tmp_path):
    stock = MegatronBertForMaskedLM(tiny("megatron-bert").config)
    stock.save_pretrained(tmp_path)
    ours, inputs = load_pretrained(str(tmp_path)).eval(), batch()
    given = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    assert torch.allclose(ours(**given).logits[0], stock.eval()(**given).logits[0], atol=1e-5)
    assert ours(**inputs).loss.item() > 0


def test_checkpoints_that_cannot_be_continued(tmp_path):
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=50)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a 'gpt2', which has no masked-language-model head; give a checkpoint of"):
        load_pretrained(str(tmp_path))


def test_initialisation_follows_the_stock_class_and_the_seed():
    # B16: every weight N(0, 0.02), every bias 0, in the transform head and feed-forward too.
    state = torch.get_rng_state()
    model = tiny("bert-mlm", hidden_size=128, intermediate_size=256)
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.15), name
        elif name.endswith("bias"):
            assert (parameter[:VOCAB] == 0).all(), name
        else:
            assert (parameter == 1).all(), name
    for other, equal in ((1, True), (2, False)):
        again = tiny("bert-mlm", hidden_size=128, intermediate_size=256, seed=other)
        assert (
            torch.equal(
                again.bert.encoder.layer[0].output.dense.weight, model.bert.encoder.layer[0].output.dense.weight
            )
            is equal
        )


@pytest.mark.parametrize("model_type", ["bert-mlm", "bert", "roberta", "modernbert"])
def test_output_bias_starts_at_the_unigram_plateau(model_type):
    model = tiny(model_type, initializer_range=1e-4).eval()
    counts = np.random.default_rng(0).integers(0, 10_000, VOCAB)
    counts[SPECIAL["mask"]] = 0
    set_output_bias(model, counts)
    shares = counts.astype(float)
    shares[[0, 2, 3]] = 0  # never a label
    shares = (shares + 1) / (shares + 1).sum()
    inputs = batch()
    probabilities = model(**inputs, return_logits=True).logits.softmax(-1)
    assert np.allclose(probabilities[0, :VOCAB].detach(), shares, rtol=0.02, atol=1e-4)
    assert probabilities[:, VOCAB:].max() == 0


def test_padded_rows_stay_out_of_training():
    model, inputs = tiny("bert"), batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    for _ in range(3):
        loss_and_gradients(model, inputs)
        optimizer.step()
    assert model.config.vocab_size == 128
    assert (output_bias(model)[VOCAB:] == PADDED_ROW_BIAS).all()


def test_recipe_keys_reach_the_native_config():
    changes = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2, "hidden_act": "silu"}
    modern = tiny("modernbert", **changes, layer_norm_eps=1e-6, model_config={"local_attention": 32}).config
    assert (modern.mlp_dropout, modern.embedding_dropout, modern.attention_dropout) == (0.1, 0.1, 0.2)
    assert (modern.hidden_activation, modern.norm_eps, modern.local_attention) == ("silu", 1e-6, 32)
    assert (modern.cls_token_id, modern.sep_token_id, modern.bos_token_id, modern.eos_token_id) == (2, 3, 2, 3)
    bert = tiny("bert", **changes, type_vocab_size=1, layer_norm_eps=1e-5).config
    assert (bert.hidden_dropout_prob, bert.attention_probs_dropout_prob, bert.hidden_act) == (0.1, 0.2, "silu")
    assert (bert.type_vocab_size, bert.layer_norm_eps, bert.max_position_embeddings) == (1, 1e-5, 160)
    roberta = tiny("roberta", special_ids=SPECIAL | {"pad": 1, "unk": 0}).config
    assert roberta.max_position_embeddings == 162 and roberta.pad_token_id == 1  # B19
    layers = tiny("modernbert", num_hidden_layers=4, model_config={"global_attn_every_n_layers": 2}).config.layer_types
    assert layers == ["full_attention", "sliding_attention"] * 2
    assert tiny("bert", pad_vocab_to_multiple_of=8).config.vocab_size == 104
    assert tiny("bert", model_config={"attn_implementation": "eager"}).config._attn_implementation == "eager"


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_eager_attention_gives_the_same_loss(model_type):
    losses = [
        tiny(model_type, model_config={"attn_implementation": how})(**batch()).loss.item() for how in ("eager", "sdpa")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("bort", {}, "model_type='bort' has no masked-language-model head; use one of bert-mlm, "),
        ("gpt2", {}, "model_type='gpt2' has no masked-language-model head; use one of bert-mlm, "),
        ("bert", {"model_config": {"norm_bais": True}}, "'norm_bais'"),
        ("eurobert", {"hidden_dropout_prob": 0.1}, "hidden_dropout_prob=0.1 .*: set it to 0"),
        ("modernbert", {"type_vocab_size": 2}, "type_vocab_size=2 .*: leave it out"),
        ("squeezebert", {}, "model_type='squeezebert' cannot be built with these sizes: "),
        ("bert", {"hidden_size": "wide"}, "hidden_size"),
        ("bert", {"hidden_size": 33}, "num_attention_heads=2 does not divide hidden_size=33; change one of them"),
        ("bert", {"num_attention_heads": 0}, "num_attention_heads=0"),
        ("bert", {"pad_vocab_to_multiple_of": 0}, "pad_vocab_to_multiple_of=0"),
    ],
)
def test_bad_recipes_name_the_field(model_type, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        tiny(model_type, **changes)
    assert "\n" not in str(caught.value)


def test_bad_counts_and_missing_bias():
    with pytest.raises(InputError, match="unigram_counts"):
        set_output_bias(tiny("bert"), np.ones(1000))
    with pytest.raises(InputError, match="unigram_bias: .* no output bias; set it to false"):
        set_output_bias(tiny("eurobert"), np.ones(VOCAB))


def test_tied_parameters_are_counted_once_and_classes_are_reused():
    model = tiny("bert")
    stock = AutoModelForMaskedLM.from_config(model.config)
    assert parameter_count(model) == stock.num_parameters()
    assert sparse_class(type(stock)) is type(model)
    assert sparse_class(type(stock)).__name__ == "BertForMaskedLM"
    assert set(HEADS) >= {"bert", "megatron-bert", "roberta", "roberta-prelayernorm", "modernbert"}


def test_training_is_quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = tiny("bert-mlm")
        model(**batch()).loss.backward()

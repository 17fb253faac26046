"""The model types: sparse equals dense, ours equals stock, and what is saved is native."""

import copy
import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForMaskedLM, GPT2Config, GPT2LMHeadModel, Trainer

from budget_trainer.core.errors import InputError
from budget_trainer.model.build import PADDED_ROW_BIAS, _check_positions, build_model, load_pretrained
from budget_trainer.model.initialization import set_output_bias
from budget_trainer.model.sparse import HEADS
from tests.model.models import SPECIAL, VOCAB, WITH_PAIRS, assert_near, batch, check_step, pick, tiny


def test_num_items_in_batch_divides_the_sum():
    model, inputs = tiny("bert").eval(), batch()
    total = model(**inputs).loss.item() * (inputs["labels"] != -100).sum().item()
    for items in (torch.tensor(40), 40):
        assert model(**inputs, num_items_in_batch=items).loss.item() == pytest.approx(total / 40, rel=1e-6)
    inputs["labels"][:] = -100
    assert model(**inputs).loss.item() == 0.0


@pytest.mark.parametrize("micro", [8, 2])
def test_under_a_plain_trainer_accumulation_does_not_change_the_loss(tmp_path, micro):
    inputs = batch(rows=8, slots=5)
    inputs["labels"][5, 1:] = -100
    trainer = check_step(Trainer, tiny("bert"), inputs, micro, tmp_path)
    assert trainer.model_accepts_loss_kwargs and trainer.label_names == ["labels"]


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(("model_type", "add_nsp"), WITH_PAIRS)
def test_training_step_compiles_to_one_graph_and_evaluation_adds_none(model_type, add_nsp, padded):
    torch._dynamo.reset()
    model, inputs = tiny(model_type, add_nsp=add_nsp), batch(padded=padded) | {"num_items_in_batch": 16}
    if add_nsp:
        inputs |= {"next_sentence_label": torch.tensor([0, 1, 0]), "num_pairs_in_batch": torch.tensor(3)}
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
import sys, torch
sys.modules["budget_trainer"] = None  # also where the package is installed, nothing of ours can be imported
from transformers import AutoModelForMaskedLM
given, *folders = sys.argv[1:]
for folder in folders:
    with torch.no_grad():
        logits = AutoModelForMaskedLM.from_pretrained(folder).eval()(**torch.load(given)).logits
    torch.save(logits, folder + ".pt")
"""


def test_checkpoints_load_in_stock_transformers_without_us(tmp_path):
    given = pick(batch(), "input_ids", "attention_mask")
    torch.save(given, tmp_path / "given.pt")
    models = {name: tiny(name).eval() for name in ("bert-mlm", "modernbert", "roberta")}
    for name, model in models.items():
        set_output_bias(model, np.arange(VOCAB))
        model.save_pretrained(tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["architectures"] == [type(model).__name__]
        assert "auto_map" not in config and config["pad_token_id"] == 0
    command = [sys.executable, "-I", "-c", LOAD, "given.pt", *models]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    valid = given["attention_mask"].bool()
    for name, model in models.items():
        logits = torch.load(tmp_path / f"{name}.pt")
        assert torch.allclose(logits[valid], model(**given).logits[valid], atol=1e-4)
        assert logits[..., VOCAB:].max() < PADDED_ROW_BIAS + 100, "rows that pad the vocabulary can be predicted"
        again = load_pretrained(str(tmp_path / name), hidden_dropout_prob=0.3)
        assert type(again) is type(model) and again.training
        assert_near(again.state_dict(), model.state_dict(), 0, 0)
        assert 0.3 in [module.p for module in again.modules() if isinstance(module, nn.Dropout)]


# Types without a sparse head of their own here: all logits first, then the masked positions of them.
OTHER_TYPES = ["albert", "convbert", "deberta-v2", "distilbert", "electra", "ernie", "mpnet", "rembert"]


@pytest.mark.parametrize("model_type", OTHER_TYPES)
def test_any_masked_language_model_trains_and_reloads(model_type, tmp_path):
    model, inputs = tiny(model_type), batch()
    assert model_type not in HEADS
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = model(**inputs).loss
    before.backward()
    optimizer.step()
    assert model(**inputs).loss < before
    model.eval().save_pretrained(tmp_path)
    stock, again = AutoModelForMaskedLM.from_pretrained(tmp_path).eval(), load_pretrained(str(tmp_path)).eval()
    assert type(stock) is not type(model) and type(stock).__name__ == type(model).__name__
    given, valid = pick(inputs, "input_ids", "attention_mask"), inputs["attention_mask"].bool()
    assert_near(stock(**given).logits[valid], model(**given).logits[valid], 1e-5)
    assert again(**inputs).loss.item() == pytest.approx(model(**inputs).loss.item(), abs=1e-5)


@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("model_type", ["bert-mlm", *HEADS, *OTHER_TYPES, "esm", "ibert"])
def test_the_longest_block_fits_and_one_more_token_is_refused(model_type, pad):
    model = tiny(model_type, special_ids=SPECIAL | {"pad": pad, "unk": 1 - pad}, max_position_embeddings=24)
    model(**batch(length=24, padded=False)).loss.backward()
    _check_positions(model.config, 24, "max_position_embeddings")
    with pytest.raises(InputError, match=f"^long: this {model.config.model_type} takes 24 tokens, .* 25; "):
        _check_positions(model.config, 25, "long")


def test_checkpoints_that_cannot_be_continued(tmp_path):
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=50)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a 'gpt2', which has no masked-language-model head; give a checkpoint of"):
        load_pretrained(str(tmp_path))


@pytest.mark.parametrize(("model_type", "add_nsp"), WITH_PAIRS)
def test_every_weight_starts_at_the_initializer_range(model_type, add_nsp):
    """B16: FFN-in, MLM transform and pooler of the original kept kaiming-uniform weights and non-zero biases."""
    model = tiny(model_type, add_nsp=add_nsp, hidden_size=256, intermediate_size=512)
    seen = set()
    for name, module in model.named_modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(module, (nn.Linear, nn.Embedding)):
            expected, tolerance = 0.02, 0.05 if weight.numel() > 2000 else 0.3
            if (
                model_type == "modernbert"
            ):  # a normal cut at 2, and narrower by sqrt(2 * layers) into the residual stream
                expected *= 0.88 / (2 if name.endswith(("Wo", "head.dense")) else 1)
            # modernbert gives the tied output projection one of its two ranges, whichever comes last.
            if model_type != "modernbert" or weight is not model.get_output_embeddings().weight:
                assert weight.std().item() == pytest.approx(expected, rel=tolerance), name
            assert weight.mean().abs() < 3e-3, name
            assert weight.abs().max() <= 0.02 * 6, name
            seen.add(name)
        elif weight is not None:
            assert (weight == 1).all(), name
        if isinstance(bias, torch.Tensor):
            assert (bias[:VOCAB] == 0).all(), name
    ffn_in = {"modernbert": "mlp.Wi", "eurobert": "up_proj"}.get(model_type, "intermediate")
    assert any(ffn_in in name for name in seen)
    assert any("transform" in n or "lm_head" in n or "head.dense" in n for n in seen)
    assert any("pooler" in name for name in seen) is add_nsp


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(("model_type", "add_nsp"), WITH_PAIRS)
def test_the_output_bias_is_in_the_logits_and_learns(model_type, add_nsp, sparse):
    """B17: with sparse prediction the original's output bias never entered the logits. And nothing is left out."""
    model = tiny(model_type, add_nsp=add_nsp, sparse_mask_prediction=sparse)
    inputs = batch(rows=8, padded=False)
    if add_nsp:
        kinds = (torch.arange(40) >= 20).long().expand(8, 40)
        inputs |= {"token_type_ids": kinds, "next_sentence_label": torch.arange(8) % 2}
    model(**inputs).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    bias = model.get_output_embeddings().bias
    if model_type == "eurobert":
        assert bias is None
        return
    assert bias.grad[:VOCAB].abs().min() > 0 and (bias.grad[VOCAB:] == 0).all()
    given = (inputs["input_ids"], None, inputs["masked_positions"])
    with torch.no_grad():
        before = model.masked_logits(*given)
        bias[7] += 1.5
        after = model.masked_logits(*given)
    assert torch.allclose((after - before)[:, 7], torch.tensor(1.5), atol=1e-5)
    assert torch.allclose(after[:, 8:], before[:, 8:], atol=1e-5)


def test_weights_are_those_of_the_seed_which_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    weights = [tiny("bert-mlm", seed=seed).bert.encoder.layer[0].output.dense.weight for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("model_type", ["bert-mlm", "bert", "roberta", "modernbert"])
def test_output_bias_starts_at_the_unigram_plateau(model_type):
    model = tiny(model_type, initializer_range=1e-4).eval()
    counts = np.random.default_rng(0).integers(0, 10_000, VOCAB)
    counts[SPECIAL["mask"]] = 0
    set_output_bias(model, counts)
    shares = counts.astype(float)
    shares[[0, 2, 3]] = 0  # never a label
    shares = (shares + 1) / (shares + 1).sum()
    probabilities = model(**batch(), return_logits=True).logits.softmax(-1)
    assert np.allclose(probabilities[0, :VOCAB].detach(), shares, rtol=0.02, atol=1e-4)
    assert probabilities[:, VOCAB:].max() == 0


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


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("bort", {}, "model_type='bort' has no masked-language-model head; use one of bert-mlm, "),
        ("gpt2", {}, "model_type='gpt2' has no masked-language-model head; use one of bert-mlm, "),
        ("bert", {"model_config": {"norm_bais": True}}, "'norm_bais'"),
        ("eurobert", {"hidden_dropout_prob": 0.1}, "hidden_dropout_prob=0.1 .*: set it to 0"),
        ("modernbert", {"type_vocab_size": 2}, "type_vocab_size=2 .*: leave it out"),
        (
            "fnet",
            {"attention_probs_dropout_prob": 0.1, "model_config": {"colour": 1}},
            "'colour' is unknown .*; attention_probs_dropout_prob=0.1 .*set it to 0; num_attention_heads=2 .* leave it out$",
        ),
        ("xlm", {"initializer_range": 0.02}, "initializer_range=0.02 .*; intermediate_size=48 .*: leave it out$"),
        (
            "bert",
            {"hidden_size": 0, "num_attention_heads": 0},
            "hidden_size=0 must .*; num_attention_heads=0 must be 1",
        ),
        (
            "xmod",
            {"model_config": {"languages": ["en_XX", "de_DE"]}},
            "model_config: xmod has 2 languages .en_XX, de_DE",
        ),
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


@pytest.mark.parametrize("model_type", ["fnet", "xlm", "xmod", "funnel"])
def test_defaults_that_a_type_does_not_know_are_the_librarys(model_type):
    named = {"hidden_size": 32, "max_position_embeddings": 40, "intermediate_size": 48, "num_hidden_layers": 1}
    unasked = {"num_attention_heads": 2, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    model = build_model(
        model_type, vocab_size=VOCAB, special_ids=SPECIAL, **named, **unasked, defaults={*named, *unasked}
    )
    model(**batch()).loss.backward()
    assert not hasattr(model.config, "num_attention_heads") or model.config.num_attention_heads == 2


def test_bad_counts_and_missing_bias():
    with pytest.raises(InputError, match="unigram_counts"):
        set_output_bias(tiny("bert"), np.ones(1000))
    with pytest.raises(InputError, match="unigram_bias: .* no output bias; set it to false"):
        set_output_bias(tiny("eurobert"), np.ones(VOCAB))


def test_training_is_quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny("bert-mlm")(**batch()).loss.backward()

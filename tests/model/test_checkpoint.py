"""What is asked of a checkpoint before a run goes on from it: its weights, its tokenizer, its vocabulary."""

import json
import os
import re
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizerFast

from budget_trainer import fill_mask
from budget_trainer.core.errors import InputError
from budget_trainer.model.build import PADDED_ROW_BIAS, load_pretrained, make_model
from tests.model.models import SPECIAL, VOCAB, tiny

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(VOCAB - 5))]


def tokenizer_of(tokens, folder, **options):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    return BertTokenizerFast(str(folder / "vocab.txt"), **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A BERT, its tokenizer, and nothing wrong with them."""
    folder = tmp_path_factory.mktemp("checkpoint") / "final"
    tiny("bert").save_pretrained(folder)
    tokenizer_of(TOKENS, folder).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "final")


def begin(folder, tokenizer=None, **options):
    tokenizer = tokenizer or BertTokenizerFast.from_pretrained(folder)
    options |= {"vocab_size": len(tokenizer), "tokenizer": tokenizer, "longest_block": 40, "new": {}, "seed": 3}
    return make_model(str(folder), "bert", **options)


def rename(change, folder):
    """Save the weights again under the names that `change` gives, None leaving one out."""
    state = load_file(folder / "model.safetensors")
    named = {change(name): tensor for name, tensor in state.items()}
    named.pop(None, None)
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})


def drop(part, folder):
    rename(lambda name: None if part in name else name, folder)


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


WRAPPED = ["module.{}", "_orig_mod.{}", "module._orig_mod.{}", "model.{}"]
LACKS = r"lacks \d+ weights of its encoder \(bert\."
DAMAGES = [
    *((partial(rename, form.format), rf"{LACKS}.* has names such as {form[:-2]}.*; save it with") for form in WRAPPED),
    (
        partial(rename, lambda name: name.replace("layer.1", "layer._fsdp_wrapped_module.1")),
        rf"{LACKS}.*such as bert\.encoder\.layer\._fsdp_wrapped_module\..*; save it with",
    ),
    (partial(drop, "layer.1."), rf"{LACKS}encoder.layer.1.*\); give a whole checkpoint$"),
    (partial(drop, "layer.0.attention.self.query"), "lacks 2 weights of its encoder"),
    (partial(drop, "word_embeddings"), "lacks 1 weights of its encoder"),
    (lambda folder: edit(folder, num_hidden_layers=3), rf"{LACKS}encoder.layer.2.*; give a whole checkpoint$"),
    (
        lambda folder: edit(folder, max_position_embeddings=128),
        r"position_embeddings.weight has the shape \(160, 32\), by its config.json \(128, 32\); correct config.json$",
    ),
    (lambda folder: edit(folder, vocab_size=64), r"word_embeddings.weight has the shape \(128, 32\), by its config"),
    (lambda folder: edit(folder, model_type="roberta"), r"lacks \d+ weights of its encoder \(roberta\."),
    (lambda folder: edit(folder, model_type="nobody's"), "the config.json of .* cannot be read "),
    (lambda folder: edit(folder, num_attention_heads="2"), "the config.json of .* cannot be read "),
    (lambda folder: (folder / "config.json").write_text("[]"), "the config.json of .* cannot be read "),
    (lambda folder: os.truncate(folder / "model.safetensors", 5000), r"cannot be loaded \("),
]


@pytest.mark.parametrize(("damage", "expected"), DAMAGES)
def test_weights_that_are_not_there_are_refused(folder, damage, expected, capfd):
    damage(folder)
    with pytest.raises(InputError, match=f"^model_name_or_path: .*{expected}") as caught:
        begin(folder)
    assert "\n" not in str(caught.value)
    assert fill_mask.main([str(folder)]) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.match("error: model: .*(lacks .* weights of its encoder|has the shape|cannot be read)", line)


def test_a_head_may_be_new_where_training_goes_on_and_nowhere_else(folder, caplog, capfd):
    drop("cls.", folder)
    with caplog.at_level("INFO"):
        model = begin(folder)
    assert "6 weights of its head are new (cls.predictions.bias, ...)" in caplog.text
    kept = load_file(folder / "model.safetensors")
    assert torch.equal(
        model.bert.encoder.layer[1].output.dense.weight, kept["bert.encoder.layer.1.output.dense.weight"]
    )
    with pytest.raises(InputError, match=r"^output_dir: .* lacks 6 weights of its head \(cls\.predictions\.bias"):
        load_pretrained(str(folder), whole=True, field="output_dir")
    assert fill_mask.main([str(folder)]) == 2 and "lacks 6 weights of its head" in capfd.readouterr().err


def test_fill_mask_asks_for_the_models_tokenizer(folder, capfd):
    assert fill_mask.main([str(folder), "--text", "[MASK]" + " w9" * 200]) == 2
    assert re.search(r"error: --text .* has 203 tokens, the model takes \d+; cut it\n", capfd.readouterr().err)
    tokenizer_of([*TOKENS, *(f"x{number}" for number in range(60))], folder).save_pretrained(folder)
    assert fill_mask.main([str(folder)]) == 2
    assert "has a tokenizer of 160 tokens and a vocabulary of 128; put" in capfd.readouterr().err
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    assert fill_mask.main([str(folder)]) == 2 and "has no tokenizer (tokenizer.json, ...)" in capfd.readouterr().err


SWAPPED = [*TOKENS[:17], TOKENS[18], TOKENS[17], *TOKENS[19:]]


@pytest.mark.parametrize(
    ("tokens", "options", "why"),
    [
        (SWAPPED, {}, "token 17 is 'w12' in the model's and 'w13' in the other"),
        ([*SWAPPED, "new"], {}, "token 17 is 'w12' in the model's and 'w13' in the other"),
        (TOKENS[:60], {}, "token 60 is 'w55' in the model's and missing, of 60 tokens, in the other"),
        (TOKENS, {"do_lower_case": False}, "(the same tokens, but they cut "),
        ([*TOKENS, "new"], {"do_lower_case": False}, "(the same tokens, but they cut "),
    ],
)
def test_data_of_another_tokenizer_is_refused(folder, tmp_path, tokens, options, why):
    tokens = [token.replace("w20", "the") for token in tokens]
    tokenizer_of([token.replace("w20", "the") for token in TOKENS], folder).save_pretrained(folder)
    with pytest.raises(InputError, match="another tokenizer than the data folder") as caught:
        begin(folder, tokenizer_of(tokens, tmp_path / "data", **options))
    assert why in str(caught.value) and str(caught.value).endswith(f"prepare the data with --tokenizer {folder}")


def test_a_sentencepiece_model_beside_the_weights_is_named(folder, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    (folder / "spiece.model").write_bytes(b"\n\x0e")
    with pytest.raises(InputError, match=r"sentencepiece model alone \(spiece.model\); load it where"):
        begin(folder, tokenizer_of(TOKENS, tmp_path / "data"))


@pytest.mark.parametrize(("size", "fits"), [(VOCAB, True), (128, True), (60, False), (129, False)])
def test_without_a_tokenizer_the_vocabulary_has_to_be_the_datas(folder, tmp_path, caplog, size, fits):
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    tokenizer = tokenizer_of([*TOKENS, *(f"x{number}" for number in range(60))][:size], tmp_path / "data")
    if fits:
        edit(folder, pad_token_id=7)
        with pytest.raises(
            InputError,
            match="no tokenizer beside it, and 128 tokens and padding 7; the data folder has .* and 0: prepare",
        ):
            begin(folder, tokenizer)
        edit(folder, pad_token_id=0)
        with caplog.at_level("INFO"):
            begin(folder, tokenizer)
        assert "has no tokenizer: that of the data folder is taken for its own" in caplog.text
    else:
        with pytest.raises(
            InputError, match=f"no tokenizer beside it, and 128 tokens and padding 0; the data folder has {size} and"
        ):
            begin(folder, tokenizer)


@pytest.mark.parametrize("added", [8, 60])  # into the rows that padded the vocabulary, and beyond them
@pytest.mark.parametrize("model_type", ["bert-mlm", "modernbert", "electra", "eurobert"])
def test_added_words_get_rows_of_their_own(whole, tmp_path, model_type, added):
    before = tiny(model_type)
    before.save_pretrained(tmp_path / "final")
    own = BertTokenizerFast.from_pretrained(whole)
    own.save_pretrained(tmp_path / "final")
    own.add_tokens([f"new{number}" for number in range(added)])
    models = [begin(tmp_path / "final", own) for _ in range(2)]
    model, bias = models[0], getattr(models[0].get_output_embeddings(), "bias", None)
    rows, old = (m.get_input_embeddings().weight for m in (model, before))
    assert model.added_tokens == added and len(rows) == model.config.vocab_size == (128 if added == 8 else 192)
    assert torch.equal(rows[:VOCAB], old[:VOCAB])
    assert torch.equal(rows, models[1].get_input_embeddings().weight), "the same rows on every rank"
    new = rows[VOCAB : VOCAB + added]
    torch.testing.assert_close(new, old[:VOCAB].mean(0).expand_as(new), atol=1e-4, rtol=0)
    if bias is not None:
        assert bias[VOCAB : VOCAB + added].abs().max() < 1 and (bias[VOCAB + added :] == PADDED_ROW_BIAS).all()
    ids = torch.arange(VOCAB + added)[None, -32:]
    assert model(input_ids=ids, labels=ids).loss < 7, "they can be predicted"
    model.save_pretrained(tmp_path / "again")
    own.save_pretrained(tmp_path / "again")
    assert begin(tmp_path / "again", own).added_tokens == 0


def test_words_that_a_tokenizer_got_without_its_model(folder):
    own = BertTokenizerFast.from_pretrained(folder)
    own.add_tokens([f"new{number}" for number in range(60)])
    own.save_pretrained(folder)
    assert begin(folder, own).config.vocab_size == 192


@pytest.mark.parametrize("model_type", ["esm", "ibert"])
def test_a_class_that_cannot_grow_says_so(whole, tmp_path, model_type):
    tiny(model_type, special_ids=SPECIAL).save_pretrained(tmp_path / "final")
    own = BertTokenizerFast.from_pretrained(whole)
    own.save_pretrained(tmp_path / "final")
    own.add_tokens([f"new{number}" for number in range(60)])
    with pytest.raises(
        InputError, match=f"{model_type} has 100 tokens and takes no more, the data folder has 160; prep"
    ):
        begin(tmp_path / "final", own)

"""The pinned evaluation: the same number whatever the ranks, the batches and the wrapping of the model."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from budget_trainer.core.errors import InputError
from budget_trainer.data.folder import DataFolder
from budget_trainer.model.build import build_model
from budget_trainer.training.evaluation import PinnedEvaluation
from tests.conftest import ROOT, run

SCORER = ROOT / "benchmarks" / "baselines" / "scorer.py"
SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
VOCAB = 60
KEYS = ("loss", "perplexity", "accuracy", "bits_per_byte", "tokens", "blocks")


def blocks(count=50, length=40):
    random = np.random.default_rng(0)
    ids = np.zeros((count, length), dtype=np.uint16)
    for i, size in enumerate(random.integers(18, length + 1, count)):
        ids[i, :size] = [SPECIAL["cls"], *random.integers(5, VOCAB, size - 2), SPECIAL["sep"]]
    return ids, np.where(ids > 4, random.integers(1, 9, ids.shape), 0).astype(np.uint8)


def evaluation(**changes):
    return PinnedEvaluation(*blocks(), special_ids=SPECIAL, vocab_size=VOCAB, **changes)


def model(model_type="bert", **changes):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    options = {"vocab_size": VOCAB, "special_ids": SPECIAL, "max_position_embeddings": 128, "initializer_range": 0.5}
    return build_model(model_type, **sizes | options | changes)


def near(a, b):
    return all(a[key] == pytest.approx(b[key], rel=1e-6) for key in KEYS)


@pytest.mark.parametrize("model_type", ["bert", "bert-mlm", "modernbert", "distilbert"])
def test_equals_the_plain_computation(model_type):
    """Block by block, unpadded, with all logits: nothing of the batching is in here."""
    scored = model(model_type)
    result = evaluation().run(scored, device="cpu")
    ids, nbytes = blocks()
    generator, nats, hits, tokens, size = torch.Generator().manual_seed(1234), 0.0, 0, 0, 0
    scored.eval()
    for row, weight in zip(ids, nbytes, strict=True):
        row = torch.from_numpy(row[row != 0].astype(np.int64))
        n = len(row)
        score = torch.rand(n, generator=generator)
        score[[0, -1]] = 2
        chosen = score.argsort()[: max(1, round(0.15 * (n - 2)))]
        action = torch.rand(n, generator=generator)
        noise = torch.randint(VOCAB, (n,), generator=generator)
        inputs = row.clone()
        for i in chosen.tolist():
            inputs[i] = 4 if action[i] < 0.8 else noise[i] if action[i] < 0.9 else row[i]
        with torch.no_grad():
            logits = scored(input_ids=inputs[None], attention_mask=torch.ones_like(inputs)[None]).logits[0, chosen]
        nats += torch.nn.functional.cross_entropy(logits, row[chosen], reduction="sum").item()
        hits += (logits.argmax(-1) == row[chosen]).sum().item()
        tokens += len(chosen)
        size += int(weight[chosen.numpy()].sum())
    assert result["complete"] and result["blocks"] == 50 and result["tokens"] == tokens
    assert result["loss"] == pytest.approx(nats / tokens, abs=1e-5)
    assert result["accuracy"] == hits / tokens
    assert result["bits_per_byte"] == pytest.approx(nats / np.log(2) / size, abs=1e-5)


@pytest.mark.parametrize("world_size", [2, 3, 60])
def test_ranks_sum_to_one_rank(world_size):
    scored, shares, calls = model(), [], []
    scored.bert.register_forward_hook(lambda *_: calls.append(len(shares)))
    for rank in range(world_size):
        split = {"rank": rank, "world_size": world_size, "reduce_sum": lambda tensor: shares.append(tensor) or tensor}
        evaluation(batch_size=4).run(scored, device="cpu", **split)
    assert len({calls.count(rank) for rank in range(world_size)}) == 1, "as many forward passes on each rank"
    total = torch.stack(shares).sum(0)
    summed = evaluation().run(scored, device="cpu", reduce_sum=lambda tensor: total)
    assert near(summed, evaluation().run(scored, device="cpu"))


def test_batch_size_repetition_and_length_do_not_matter():
    scored, pinned = model(), evaluation()
    whole = pinned.run(scored, device="cpu")
    assert pinned.run(scored, device="cpu") == whole
    assert near(evaluation(batch_size=7).run(scored, device="cpu"), whole)
    first = evaluation().run(scored, device="cpu", max_blocks=10)
    assert first == pinned.run(scored, device="cpu", max_blocks=10) and first["blocks"] == 10
    again = evaluation()
    again.run(scored, device="cpu", max_blocks=10)
    assert again.run(scored, device="cpu", max_blocks=1000) == whole
    assert not near(evaluation(seed=1).run(scored, device="cpu"), whole)


def test_stock_models_and_wrapped_models_score_the_same():
    scored = model()
    whole = evaluation().run(scored, device="cpu")
    stock = BertForMaskedLM(scored.config)
    stock.load_state_dict(scored.state_dict())
    assert near(evaluation().run(stock, device="cpu"), whole)

    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *args):
            raise AssertionError("the wrapper was called")

    assert evaluation().run(Wrapper(scored), device="cpu") == whole
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert evaluation().run(scored, device="cpu") == whole


def test_modes_and_random_state_are_left_alone_and_compiled_calls_unused():
    scored = model(hidden_dropout_prob=0.5)
    scored.bert.encoder.layer[0].eval()
    modes = [module.training for module in scored.modules()]
    scored.compile(backend=lambda graph, inputs: pytest.fail("evaluation compiled something"))
    state = torch.get_rng_state()
    whole = evaluation().run(scored, device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in scored.modules()] == modes
    assert evaluation().run(scored.eval(), device="cpu") == whole
    assert all(parameter.grad is None for parameter in scored.parameters())


def test_stopping_ends_between_batches_and_still_meets_the_other_ranks():
    answers, reduced = iter([False, False, True]), []
    options = {"should_stop": lambda: next(answers), "reduce_sum": lambda tensor: reduced.append(tensor) or tensor}
    result = evaluation(batch_size=5).run(model(), device="cpu", **options)
    assert (result["blocks"], result["complete"], len(reduced)) == (10, False, 1)
    nothing = evaluation().run(model(), device="cpu", should_stop=lambda: True)
    assert nothing["tokens"] == 0 and np.isnan(nothing["loss"])


def test_bad_tables_are_refused():
    ids, nbytes = blocks()
    for arrays in ((ids, nbytes[:3]), (ids[:0], nbytes[:0]), (ids[0], nbytes[0])):
        with pytest.raises(InputError, match="validation input_ids"):
            PinnedEvaluation(*arrays, special_ids=SPECIAL, vocab_size=VOCAB)
    ids[3, 1:] = 0
    with pytest.raises(InputError, match="block 3 holds 1 tokens"):
        PinnedEvaluation(ids, nbytes, special_ids=SPECIAL, vocab_size=VOCAB).run(model(), device="cpu")
    with pytest.raises(InputError, match="max_blocks=0"):
        evaluation().run(model(), device="cpu", max_blocks=0)
    with pytest.raises(InputError, match="batch_size=0"):
        evaluation(batch_size=0)


def test_equals_the_scorer_of_stock_classes(data_dir, tmp_path):
    """From the text: the same documents, blocks, bytes, draws and scores."""
    folder = DataFolder.open(data_dir)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    scored = BertForMaskedLM(BertConfig(vocab_size=folder.vocab_size, **sizes, initializer_range=0.3))
    scored.save_pretrained(tmp_path)
    shutil.copytree(data_dir / "tokenizer", tmp_path, dirs_exist_ok=True)
    pinned = PinnedEvaluation(*folder.validation_rows(), special_ids=folder.special_ids, vocab_size=folder.vocab_size)
    ours = pinned.run(scored, device="cpu")
    done = run([sys.executable, SCORER, "--model", tmp_path, "--text", data_dir / "validation.txt"], ok=True)
    theirs = json.loads(done.stdout.splitlines()[-1])
    assert all(ours[key] == pytest.approx(theirs[key], rel=1e-5) for key in KEYS), (ours, theirs)
    assert ours["blocks"] > 20 and theirs["model_type"] == "bert"

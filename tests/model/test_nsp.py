"""Next-sentence prediction: the stock classes' losses, the right means, and it learns (the original's defect B7)."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, BertForPreTraining, MegatronBertForPreTraining

from budget_trainer import TimeBudgetTrainer
from budget_trainer.core.errors import InputError
from budget_trainer.model.build import load_pretrained
from budget_trainer.model.initialization import set_output_bias
from budget_trainer.model.next_sentence import count_pairs
from budget_trainer.training.evaluation import PinnedEvaluation
from tests.model import models
from tests.model.models import SPECIAL, VOCAB, assert_near, check_step, loss_and_gradients, pick, stock_twin

STOCK = {"bert": BertForPreTraining, "megatron-bert": MegatronBertForPreTraining}
TYPES = sorted(STOCK)
OTHERS = ("roberta", "roberta-prelayernorm", "modernbert", "eurobert", "distilbert")
ENCODED = ("input_ids", "attention_mask", "token_type_ids")


def tiny(model_type, **changes):
    return models.tiny(model_type, **{"add_nsp": True, "max_position_embeddings": 48} | changes)


def pairs(rows=8, length=24, slots=4, seed=0):
    """Toy pairs: B is from A's half of the vocabulary where it follows. One block has padding, one fewer labels."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(rows) % 2
    words = torch.randint(47, (rows, length), generator=generator)
    token_types = (torch.arange(length) >= length // 2).long().expand(rows, length).contiguous()
    ids = 5 + words + 47 * token_types * label[:, None]
    ids[:, 0] = SPECIAL["cls"]
    ids[:, [length // 2 - 1, -1]] = SPECIAL["sep"]
    positions = torch.stack([torch.randperm(8, generator=generator)[:slots].sort().values + 1 for _ in range(rows)])
    labels = ids.gather(1, positions)
    labels[-1, 1:] = -100
    ids[1, -4:], token_types[1, -4:] = SPECIAL["pad"], 0
    return {
        "input_ids": ids,
        "attention_mask": (ids != SPECIAL["pad"]).long(),
        "token_type_ids": token_types,
        "masked_positions": positions,
        "labels": labels,
        "next_sentence_label": label,
    }


def scattered(inputs):
    """The stock classes' batch: labels [B, L]."""
    labels = torch.full_like(inputs["input_ids"], -100).scatter(1, inputs["masked_positions"], inputs["labels"])
    return {**{k: v for k, v in inputs.items() if k != "masked_positions"}, "labels": labels}


@pytest.mark.parametrize("model_type", TYPES)
def test_the_checkpoint_is_native_and_the_losses_are_those_of_the_stock_class(model_type, tmp_path):
    model, inputs = tiny(model_type).eval(), pairs()
    set_output_bias(model, np.arange(VOCAB))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [STOCK[model_type].__name__]
    again = load_pretrained(str(tmp_path), add_nsp=True)
    assert type(again) is type(model)
    assert_near(again.state_dict(), model.state_dict(), 0, 0)
    stock = AutoModelForPreTraining.from_pretrained(tmp_path).eval()
    masked = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert type(stock) is STOCK[model_type]

    ours, expected = model(**inputs, return_logits=True), stock(**scattered(inputs))
    for loss in (ours.loss, model(**scattered(inputs)).loss):
        assert loss.item() == pytest.approx(expected.loss.item(), abs=1e-5)
    assert_near(ours.seq_relationship_logits, expected.seq_relationship_logits, 1e-5)
    wanted = expected.prediction_logits.gather(1, inputs["masked_positions"][..., None].expand(-1, -1, 128))
    assert_near(ours.prediction_logits, wanted.flatten(0, 1), 1e-5)
    assert model(**inputs).prediction_logits is None
    given, valid = pick(inputs, *ENCODED), inputs["attention_mask"].bool()
    for logits in (model(**given).prediction_logits, masked(**given).logits):
        assert_near(logits[valid], expected.prediction_logits[valid], 1e-5)
    without = {name: value for name, value in inputs.items() if name != "next_sentence_label"}
    alone = F.cross_entropy(wanted.flatten(0, 1), inputs["labels"].flatten()).item()
    assert model(**without).loss.item() == pytest.approx(alone, abs=1e-5)

    rows = np.random.default_rng(0).integers(5, VOCAB, (8, 32))
    rows[:, 0], rows[:, -1] = SPECIAL["cls"], SPECIAL["sep"]
    evaluation = PinnedEvaluation(rows, np.ones_like(rows), special_ids=SPECIAL, vocab_size=VOCAB)
    scores = [evaluation.run(m, device="cpu")["loss"] for m in (model, masked)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize(("micro", "ranks"), [(8, 1), (1, 1), (2, 1), (1, 2), (4, 2)])
def test_accumulation_and_ranks_do_not_change_the_loss(model_type, micro, ranks):
    """1 x 8 == 8 x 1 == 2 ranks x 4, with micro-batches that hold different numbers of labels."""
    model, inputs = tiny(model_type), pairs()
    expected, wanted = loss_and_gradients(stock_twin(model, STOCK[model_type]), scattered(inputs))
    batches = [{name: tensor[i : i + micro] for name, tensor in inputs.items()} for i in range(0, 8, micro)]
    for rank in range(ranks):
        count_pairs(batches[rank::ranks], world_size=ranks)
    items = (inputs["labels"] != -100).sum()
    # Trainer multiplies a rank's loss by the number of ranks, and the gradients are averaged over them.
    loss, gradients = loss_and_gradients(model, *({**b, "num_items_in_batch": items} for b in batches))
    assert all(b["num_pairs_in_batch"].item() == 8 for b in batches)
    assert loss == pytest.approx(expected, abs=1e-5)
    assert_near(gradients, wanted)


@pytest.mark.parametrize("micro", [8, 2])
def test_our_trainer_hands_in_the_number_of_pairs(tmp_path, micro):
    check_step(TimeBudgetTrainer, tiny("megatron-bert"), pairs(), micro, tmp_path, total_training_time="60s")


def test_a_step_of_unknown_size_is_refused():
    with pytest.raises(InputError, match="^num_pairs_in_batch: missing beside num_items_in_batch; add the number"):
        tiny("bert")(**pairs(), num_items_in_batch=30)
    batches = [{"labels": torch.zeros(2)}]
    count_pairs(batches, world_size=2)
    assert list(batches[0]) == ["labels"], "batches without pairs stay as they are"


@pytest.mark.parametrize("model_type", TYPES)
def test_it_learns(model_type):
    """B7: the original's next-sentence prediction could not train at all."""
    model = tiny(model_type)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def pair_loss():
        inputs = pairs(rows=64, seed=999)
        given = pick(inputs, *ENCODED)
        with torch.no_grad():
            scores = model.eval().pair_scores(model.encode(**given))
        model.train()
        return F.cross_entropy(scores, inputs["next_sentence_label"]).item()

    before = pair_loss()
    for step in range(30):
        loss_and_gradients(model, pairs(rows=32, seed=step))
        optimizer.step()
    assert before > 0.6 and pair_loss() < 0.2


def test_a_checkpoint_without_the_head_gets_one_from_the_seed(tmp_path):
    tiny("bert", add_nsp=False).save_pretrained(tmp_path)
    first, second, other = (load_pretrained(str(tmp_path), add_nsp=True, seed=seed) for seed in (1, 1, 2))
    weights = [model.cls.seq_relationship.weight for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(first.cls.predictions.transform.dense.weight, other.cls.predictions.transform.dense.weight)


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        *((name, {}, f"add_nsp: model_type {name} .*; use model_type bert or megatron-bert") for name in OTHERS),
        ("bert", {"type_vocab_size": 1}, "type_vocab_size: 1 cannot tell the sentences of a pair apart; set it to 2"),
    ],
)
def test_models_that_cannot_have_it(model_type, changes, message):
    with pytest.raises(InputError, match=f"^{message}"):
        tiny(model_type, **changes)


def test_a_run_cannot_go_on_with_another_objective(open_run):
    run, found = open_run(model_type="bert"), []
    for add_nsp in (True, False):
        run.model = tiny("bert", add_nsp=add_nsp)
        object.__setattr__(run.recipe, "add_nsp", add_nsp)  # frozen; data of pairs would be another folder
        found.append(run.make_identity())
    assert {key for key in found[0] if found[0][key] != found[1][key]} == {"add_nsp"}

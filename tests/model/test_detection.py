"""Replaced-token detection: its loss by definition, what of training it changes, and what it does not."""

import numpy as np
import pytest
import torch
from accelerate.utils import compile_regions
from torch.nn import functional as F

from budget_trainer.core.errors import InputError
from budget_trainer.model.cross_entropy import ReplacedTokenDetection
from budget_trainer.model.flops import model_flops_per_token
from budget_trainer.model.optimizers import build_optimizer
from tests.model.models import SPECIAL, VOCAB, tiny

TEXT = torch.tensor(
    [[SPECIAL["cls"], 30, 31, 32, 33, SPECIAL["sep"]], [SPECIAL["cls"], 40, 41, 42, SPECIAL["sep"], SPECIAL["pad"]]]
)
# Row 0: position 1 is replaced, 3 masked. Row 1: position 2 is chosen and kept, the other slot unused.
SHOWN, POSITIONS = TEXT.clone(), torch.tensor([[1, 3], [2, 0]])
SHOWN[0, 1], SHOWN[0, 3] = 50, SPECIAL["mask"]
LABELS = torch.tensor([[30, 32], [41, -100]])
BATCH = {
    "input_ids": SHOWN,
    "attention_mask": (TEXT != SPECIAL["pad"]).long(),
    "masked_positions": POSITIONS,
    "labels": LABELS,
}


def model(weight=None, **options):
    made = tiny("modernbert", seed=0, **options)
    if weight is not None:
        made.detect_replaced_tokens(weight, SPECIAL, seed=0)
    return made.train()


def test_the_loss_is_that_of_its_definition():
    head, hidden = ReplacedTokenDetection(8, 1.0, SPECIAL, 0.5, seed=0), torch.randn(2, 6, 8)
    scores = head.score(F.gelu(head.dense(hidden))).squeeze(-1)
    asked = [(0, 1), (0, 2), (0, 4), (1, 1), (1, 2), (1, 3)]  # neither special nor masked
    losses = [F.softplus(-scores[p]) if p == (0, 1) else F.softplus(scores[p]) for p in asked]
    assert head(hidden, SHOWN, POSITIONS, LABELS).item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    again = ReplacedTokenDetection(8, 1.0, SPECIAL, 0.5, seed=0)
    assert torch.equal(head.dense.weight, again.dense.weight), "the weights are the seed's"


@pytest.mark.parametrize("items", [None, torch.tensor(12)])
def test_it_is_added_with_its_weight_and_its_part_of_the_step(items):
    plain, detecting = model(), model(20.0)
    masked, both = (m(**BATCH, num_items_in_batch=items) for m in (plain, detecting))
    alone = detecting.detection(detecting.encode(SHOWN, BATCH["attention_mask"]), SHOWN, POSITIONS, LABELS)
    share = 1.0 if items is None else 3 / 12
    torch.testing.assert_close(both.detection_loss, share * alone.detach())
    torch.testing.assert_close(both.loss, masked.loss + 20 * share * alone)
    torch.testing.assert_close(both.masked_loss, masked.loss.detach())
    both.loss.backward()
    detecting.detection.fall(0.75)
    torch.testing.assert_close(detecting(**BATCH, num_items_in_batch=items).loss, masked.loss + 5 * share * alone)
    assert detecting.detection.score.weight.grad.abs().sum() > 0


def test_compiled_layer_by_layer_it_has_the_same_loss():
    """Regional compilation wraps the modules of both losses, too."""
    detecting, found = model(20.0), []
    detecting.sample_softmax(np.ones(VOCAB), VOCAB - 5)
    for one in (detecting, compile_regions(detecting, backend="eager", dynamic=False)):
        torch.manual_seed(0)  # of the sample
        found.append(one(**BATCH).loss)
    torch.testing.assert_close(*found)


def test_only_training_knows_of_it():
    plain, detecting = model().eval(), model(20.0).eval()
    torch.testing.assert_close(plain(**BATCH).loss, detecting(**BATCH).loss)
    assert plain.num_parameters() == detecting.num_parameters() < sum(p.numel() for p in detecting.parameters())
    assert plain.last_layer_is_sparse and not detecting.last_layer_is_sparse
    assert model_flops_per_token(detecting, 128, 19) > model_flops_per_token(plain, 128, 19)
    stock = {name for name in detecting.state_dict() if not name.startswith("detection.")}
    assert stock == set(plain.state_dict())


def test_the_optimizer_takes_its_matrix_and_not_its_output_as_hidden():
    detecting = model(20.0)
    groups = {
        id(p): g["name"]
        for g in build_optimizer("muon", detecting, learning_rate=1e-3).param_groups
        for p in g["params"]
    }
    head = detecting.detection
    kinds = [groups[id(p)] for p in (head.dense.weight, head.score.weight, head.dense.bias)]
    assert kinds == ["hidden", "decay", "no_decay"]


def test_a_dense_model_is_refused():
    with pytest.raises(InputError, match="detection_weight: 20.0 needs sparse_mask_prediction and one of .*; use 0"):
        model(20.0, sparse_mask_prediction=False)

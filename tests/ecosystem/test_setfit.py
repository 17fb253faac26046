"""setfit: its Trainer makes one of sentence-transformers of its own, so the callback is what fits."""

import pytest
from datasets import Dataset

from budget_trainer import TimeBudgetCallback
from tests.ecosystem.conftest import PEAK, SECONDS, check

setfit = pytest.importorskip("setfit", reason="setfit is not installed; make test-ecosystem has it")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


def test_the_callback_ends_the_training_of_the_body(encoder, texts, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sklearn.linear_model import LogisticRegression

    rows = Dataset.from_list([{"text": text, "label": len(text.split()) % 2} for text in texts])
    model = setfit.SetFitModel(SentenceTransformer(str(encoder), device="cpu"), LogisticRegression())
    args = setfit.TrainingArguments(
        output_dir=str(tmp_path),
        batch_size=4,
        num_epochs=1000,
        warmup_proportion=0.0,  # a share of those epochs, which never come
        body_learning_rate=PEAK,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
    )
    budget = TimeBudgetCallback(SECONDS)
    trainer = setfit.Trainer(model=model, args=args, train_dataset=rows, callbacks=[budget])
    trainer.train()
    model.save_pretrained(str(tmp_path / "final"))
    check(trainer.st_trainer, budget, "setfit")
    assert (tmp_path / "final" / "model_head.pkl").exists() and len(model.predict(texts[:3])) == 3

"""sentence-transformers: a bi-encoder on pairs from a table or a stream, and a cross-encoder."""

import pytest
from datasets import Dataset

from tests.ecosystem.conftest import flags, train

st = pytest.importorskip(
    "sentence_transformers", reason="sentence_transformers is not installed; make test-ecosystem has it"
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("way", ["callback", "mixin"])
def test_bi_encoder(way, stream, encoder, texts, tmp_path):
    model = st.SentenceTransformer(str(encoder), device="cpu")
    rows = Dataset.from_list([{"anchor": text, "positive": text.split(" ", 2)[2]} for text in texts])
    rows = rows.to_iterable_dataset() if stream else rows
    args = st.SentenceTransformerTrainingArguments(**flags(tmp_path, way, stream))
    loss = st.sentence_transformer.losses.MultipleNegativesRankingLoss(model)
    trainer = train(st.SentenceTransformerTrainer, way, model=model, args=args, train_dataset=rows, loss=loss)
    assert trainer.state.global_step > 64 / 4, "more than one pass"
    again = st.SentenceTransformer(str(tmp_path / "final"), device="cpu")
    assert abs(again.encode(texts[:3]) - model.encode(texts[:3])).max() < 1e-5


@pytest.mark.parametrize("way", ["callback", "mixin"])
def test_cross_encoder(way, encoder, texts, tmp_path):
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments, losses

    model = st.CrossEncoder(str(encoder), num_labels=1, device="cpu")
    pairs = zip(texts, texts[1:] + texts[:1], strict=True)
    rows = Dataset.from_list([{"one": a, "two": b, "label": float(len(a) < len(b))} for a, b in pairs])
    args = CrossEncoderTrainingArguments(**flags(tmp_path, way))
    loss = losses.BinaryCrossEntropyLoss(model)
    train(CrossEncoderTrainer, way, model=model, args=args, train_dataset=rows, loss=loss)

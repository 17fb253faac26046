"""What the front page and `docs/data.md` promise. Links and commands of all documents: `test_docs*.py`."""

import re

from budget_trainer.config.arguments import KEYS
from data_prep.recipe import SOURCE_KEYS
from tests import documents
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_it_is_a_front_page():
    assert len(README.splitlines()) <= 300, "a front page; depth belongs into docs/"


def test_two_commands_come_first():
    first, *_ = re.findall(r"```bash\n(.*?)```", README, re.S)
    assert {("make", "quickstart"), ("make", "test")} == {tuple(words) for words in documents.commands(first)}
    assert README.count("```python") >= 1


def test_every_key_of_train_mlm_has_a_place_in_the_documents():
    """Those of this project; TrainingArguments' have Hugging Face's own documents."""
    from dataclasses import fields

    from transformers import TrainingArguments

    text = (ROOT / "docs" / "recipes.md").read_text()
    own = KEYS - {f.name for f in fields(TrainingArguments)}
    assert not {key for key in own if not re.search(rf"`(?:--)?{key}\b", text)}


def test_data_recipes_name_the_corpora_that_are_promised():
    text = "".join(text for where, text in documents.blocks("yaml") if where.startswith("docs/data.md"))
    promised = ("wikimedia/wikipedia", "bookcorpus", "allenai/c4", "HuggingFaceFW/fineweb-edu", "jsonl", "parquet/")
    assert all(name in text for name in promised)


def test_every_key_of_a_source_is_explained():
    table = (ROOT / "docs" / "data.md").read_text().partition("| key of a source")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`(?=[ ,].*\|.*\|)", table)) >= set(SOURCE_KEYS)

"""What docs/sweeps.md shows is true: its sweep files are read, its commands parse, its table has every key."""

import re
import shlex

import pytest

from budget_trainer.sweep.command import parse_request
from budget_trainer.sweep.spec import KEYS, SEARCHES
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "sweeps.md").read_text()
FILES = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)


def commands():
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "sweep.py" in words:
                yield words[words.index("sweep.py") + 1 :]


@pytest.mark.parametrize("text", FILES)
def test_sweep_file(text, tmp_path):
    (tmp_path / "given.yaml").write_text(text)
    request = parse_request([str(tmp_path / "given.yaml"), "--job_name", "rates"])
    assert request.spec().parameters


@pytest.mark.parametrize("words", [*commands()], ids=" ".join)
def test_command(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {"original.yaml": next(text for text in FILES if "hyperparameters" in text), "rates.yaml": FILES[0]}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    request = parse_request(words)
    assert request.dry_run or request.spec().output_dir


def test_every_key_is_explained():
    assert len(FILES) == 3 and sum("hyperparameters:" in text for text in FILES) == 1
    table = PAGE.partition("| key | meaning | default |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == set(KEYS)
    for search in SEARCHES:
        assert table.count(f"`{search}`") >= 1 and PAGE.count(f"`{search}`") >= 2

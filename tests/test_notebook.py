"""The notebook is one, its commands are taken by their parsers, and it runs from top to bottom."""

import json
import os
import re

import pytest

from tests import documents
from tests.conftest import ROOT
from tests.test_docs_commands import check_command

PATH = ROOT / "notebooks" / "quickstart.ipynb"
CELLS = json.loads(PATH.read_text())["cells"]
CODE = ["".join(cell["source"]).replace("\\\n", "") for cell in CELLS if cell["cell_type"] == "code"]
(PARAMETERS,) = ("".join(cell["source"]) for cell in CELLS if "parameters" in cell["metadata"].get("tags", []))
COMMANDS = [line[1:] for text in CODE for line in text.splitlines() if line.startswith("!")]


def test_the_first_cell_of_code_installs_and_nothing_that_ran_is_stored():
    assert "%pip install" in CODE[0]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in CELLS)
    for text in CODE:
        compile(re.sub(r"(?m)^( *)[!%].*$", r"\1pass", text), str(PATH), "exec")


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: line[:60])
def test_commands_are_taken(line, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    values = {}
    exec(PARAMETERS, {"os": os}, values)
    (command,) = documents.commands(line.format(**values))
    check_command(command, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="the extra notebook is not installed")
    nbformat = pytest.importorskip("nbformat", reason="the extra notebook is not installed")
    pytest.importorskip("ipykernel", reason="the extra notebook is not installed")
    reviews = [("a fine film", "1"), ("a dull film", "0")] * 32
    for split, rows in (("train", reviews), ("dev", reviews[:16])):
        lines = ["sentence\tlabel", *("\t".join(row) for row in rows)]
        (tmp_path / "SST-2").mkdir(exist_ok=True)
        (tmp_path / "SST-2" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    lines = ["index\tsentence", *(f"{index}\t{text}" for index, (text, _) in enumerate(reviews[:8]))]
    (tmp_path / "SST-2" / "test.tsv").write_text("\n".join(lines) + "\n")

    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    cell.source += '\nBUDGET, MEGABYTES, PROBE_SECONDS, GLUE_TIME = "30s", 1, 40, "40s"'
    cell.source += f'\nGLUE_DATA = "--glue_dir {tmp_path}"'
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folder = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=folder).execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.get("text", "") for output in outputs)
    assert "error:" not in printed and "Traceback" not in printed, printed[-6000:]
    assert re.search(r"budget: \d+ steps, [\d.]+ s, model on disk", printed)
    assert re.search(r"SST-2 accuracy \d", printed) and "Returns a [MASK]" in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    for model in ("plugin/final", "script/final", "glue/model"):
        assert (tmp_path / "out" / model / "model.safetensors").is_file()

"""Six steps of the same batches under any engine and number of processes, with a checkpoint after the fourth and the last."""

import pytest
from transformers import AutoModelForMaskedLM

from tests.conftest import STEPS, batch_of_epoch, losses, report, run, words


def six_steps(head, engine, processes, data_dir, output_dir, *, parts=2, env=None, **changes):
    """The losses by step of the run that the words of `head` start.

    An epoch, half of the training rows, is four steps of `parts` micro-batches, whatever the number of processes.
    """
    batch = parts * batch_of_epoch(data_dir, 4) // processes
    options = {
        **STEPS,
        "max_steps": 6,
        "data_dir": data_dir,
        "output_dir": output_dir,
        "num_epochs_between_checkpoints": 1,
        "checkpoint_at_end": True,
    }
    options |= {"per_device_train_batch_size": batch, "validate_every": "1%", "auto_speed": False, **changes}
    run([*head, *words(options)], env=env or {}, ok=True)
    assert (report(output_dir)["world_size"], report(output_dir)["engine"]) == (processes, engine)
    AutoModelForMaskedLM.from_pretrained(output_dir / "final")
    return {line["step"]: line["loss"] for line in losses(output_dir)}


def assert_same_evaluation(folder, other, tolerance):
    scores = [report(path)["evaluation"]["loss"] for path in (folder, other)]
    assert scores[0] == pytest.approx(scores[1], rel=tolerance)


def give_checkpoint(folder, other):
    """Move the checkpoint of step 4 into a new folder."""
    assert_same_files(folder)
    other.mkdir()
    (folder / "checkpoint-4").rename(other / "checkpoint-4")


def assert_same_files(folder):
    """The two checkpoints of a run have the same files: that of the end is one like others."""
    found = {}
    for path in folder.glob("checkpoint-*"):
        step = path.name.removeprefix("checkpoint-")
        files = (str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
        found[step] = {name.replace(f"global_step{step}", "global_step") for name in files}
    assert found.keys() == {"4", "6"} and found["4"] == found["6"]

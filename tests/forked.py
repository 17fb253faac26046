"""Command lines that end at once, each in a child of one process that has torch and the like imported, which takes seconds.

A child is a process of its own, with its own exit code and output. Of this project its parent has imported nothing.
"""

import json
import os
import runpy
import subprocess
import sys
import tempfile
import warnings
from subprocess import CompletedProcess


def run_forked(lines, heads=(), *, python=sys.executable, cwd, env):
    """How `lines`, then `heads` end; a line is what stands behind `python`: a file, or `-m` and a module, and its words.

    Of `heads` the first line of stdout is read, and then nobody reads on: `| head -n 1`.
    """
    asked = [[[*map(str, line)], False] for line in lines] + [[[*map(str, line)], True] for line in heads]
    words = [python, "-P", __file__]  # -P: tests/ has folders that are called as packages are
    done = subprocess.run(words, input=json.dumps(asked), cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr  # nor do the imports say anything
    return [CompletedProcess(line, *end) for (line, _), end in zip(asked, json.loads(done.stdout), strict=True)]


def _execute(words):
    """Go on as a new interpreter does that is given `words`."""
    if words[0] == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(words[0])))
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
    sys.exit()


def _end_of(words, is_head):
    """Exit code, stdout and stderr of a child that executes `words`."""
    with tempfile.TemporaryFile() as errors:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(writer, 1)
            os.dup2(errors.fileno(), 2)
            os.close(reader)
            os.close(writer)
            _execute(words)
        os.close(writer)
        with open(reader, "rb") as pipe:
            output = pipe.readline() if is_head else pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        errors.seek(0)
        return code, output.decode(), errors.read().decode()


if __name__ == "__main__":
    import datasets  # noqa: F401
    import torch  # noqa: F401
    from transformers import AutoModelForMaskedLM, Trainer  # noqa: F401  the second imports Accelerate

    warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)  # the threads of others wait for work
    print(json.dumps([_end_of(*one) for one in json.load(sys.stdin)]))

"""The docstring corpus: files are parsed and never run; what comes out reads like English."""

import json
from pathlib import Path

import pytest

from data_prep import docstrings
from data_prep.prose import read_docstrings
from tests.data_prep.conftest import error_of

SENTENCE = "This is the sentence number {} of the module, which is long enough to be kept as it is in the corpus."
NUMBERS = "zero one two three four five six seven eight nine ten eleven".split()


def _module(*words):
    return '"""' + "\n\n".join(SENTENCE.format(word) for word in words) + '\n"""\n'


@pytest.fixture
def site_packages(tmp_path):
    """Two packages and a single module, among files that must not run and files that do not parse."""
    root, marker = tmp_path / "site-packages", tmp_path / "it_ran"
    files = {
        "alpha/__init__.py": _module("zero", "one") + f"open({str(marker)!r}, 'w')\nprint('it ran')\nexit(9)\n",
        "alpha/b.py": _module("two", "three", "four"),
        "alpha/sub/c.py": _module("five", "six", "zero"),
        "beta/__init__.py": _module("seven", "eight", "zero", "ONE"),
        "beta/broken.py": _module("nine") + "def broken(:\n",
        "beta/nul.py": _module("nine") + "\0",
        "beta/latin.py": '"""caf\xe9"""\n',
        "beta/tests/test_x.py": _module("nine", "ten", "eleven"),
        "gamma.py": _module("nine", "ten"),
        "beta/data.txt": _module("nine"),
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, encoding="latin-1")
    (root / "beta" / "loop").symlink_to(root, target_is_directory=True)
    yield root
    assert not marker.exists()


def test_packages_take_turns_and_paragraphs_occur_once(site_packages, capsys):
    (site_packages / "alpha" / "deep.py").write_text('"""x"""\n' + "-" * 100_000 + "1\n")  # gives nothing
    documents = list(read_docstrings([site_packages]))
    left: list[tuple[str, str]] = []
    assert documents == list(read_docstrings([site_packages], 2, lambda name, why: left.append((name, why))))
    files = ("beta/broken.py", "alpha/deep.py", "beta/latin.py", "beta/nul.py")
    assert left == [(str(site_packages / file), "no Python") for file in files]
    expected = [["zero", "one"], ["seven", "eight"], ["nine", "ten"], ["two", "three", "four"], ["five", "six"]]
    assert [[word for word in text.split() if word.lower() in NUMBERS] for text in documents] == expected
    assert "it ran" not in capsys.readouterr().out


def test_command_line(site_packages, tmp_path, capsys):
    out = tmp_path / "folder" / "corpus.txt"
    arguments = ["--output_file", out, "--packages", site_packages, "--num_proc", 1]
    arguments = list(map(str, arguments))
    assert docstrings.main(arguments) == 0
    documents = out.read_text().removesuffix("\n\n").split("\n\n")
    assert documents == list(read_docstrings([site_packages]))
    said = capsys.readouterr().out
    assert "5 documents; all packages were read" in said and "3 files not read: " in said
    assert error_of(docstrings.main, arguments, capsys).endswith("exists; give another path or --overwrite")
    assert docstrings.main([*arguments, "--overwrite"]) == 0
    assert [file.name for file in out.parent.iterdir()] == ["corpus.txt"]
    link = tmp_path / "link"
    link.symlink_to("far/away")  # neither is there
    assert docstrings.main(["--output_file", str(link), *arguments[2:]]) == 0
    assert link.is_symlink() and (tmp_path / "far" / "away").read_bytes() == out.read_bytes()
    folder = ["--output_file", str(tmp_path), *arguments[2:], "--overwrite"]
    assert error_of(docstrings.main, folder, capsys).endswith("is a folder; give a file")


def test_limits(tmp_path, capsys, monkeypatch):
    root = tmp_path / "packages"
    (root / "p").mkdir(parents=True)
    for i in range(30):
        (root / "p" / f"m{i:02}.py").write_text(_module(*(f"{word} in {i}" for word in NUMBERS)))
    out = tmp_path / "corpus.txt"
    arguments = ["--output_file", str(out), "--packages", str(root), "--num_proc", "1", "--overwrite"]
    clock = iter(range(0, 1000, 7))
    with monkeypatch.context() as patch:
        patch.setattr(docstrings.time, "monotonic", lambda: next(clock))
        assert docstrings.main([*arguments, "--max_seconds", "21"]) == 0
    assert "3 documents; --max_seconds 21 was reached" in capsys.readouterr().out
    (root / "p" / "big.py").write_text('"""' + "\n\n".join(SENTENCE.format(i) for i in range(11_000)) + '\n"""')
    assert docstrings.main([*arguments, "--max_megabytes", "1"]) == 0
    assert "1 documents; --max_megabytes 1 was reached" in capsys.readouterr().out
    assert len(out.read_bytes()) > 1_000_000


@pytest.mark.parametrize("folder, message", [("nowhere", "no such folder"), (".", "no English docstrings found")])
def test_mistakes_are_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, folder, message):
    monkeypatch.chdir(tmp_path)
    arguments = ["--output_file", "out.txt", "--num_proc", "1", "--packages", folder]
    assert f"packages {folder}: {message}" in error_of(docstrings.main, arguments, capsys)
    assert not list(tmp_path.glob("out*"))


def prose(folder, docstring):
    """The documents of a package whose only module has this docstring."""
    folder.mkdir()
    escaped = docstring.replace("\0", "\\0")
    (folder / "module.py").write_text(f'"""{escaped}"""\n')
    return list(read_docstrings([folder]))


def test_prose_of_a_typical_docstring(tmp_path):
    text = """\
        Computes the mean of the values that were given, or of those along an axis.

        The result is a new array, unless ``out`` was given; see :func:`~numpy.average` and `the manual
        <https://example.org/x>`_ for how **weights** can be used with *this* function.

        Parameters
        ----------
        values : array_like
            The values whose mean is wanted, which may be of any type that can be converted.

        Args:
            out (array, optional): Where the result should be stored instead of in a new array of its own.
            name: short.
        :param other: What should be done with the values that are not numbers at all.
        :type other: str

        Examples::

            >>> mean([1, 2, 3])  # this is the mean of the three values and not of the others
            this is what the program would print if it were run by the user

        >>> mean([1])
        and this is also printed by the program when it is run by the user

        ======  =====
        name    what
        ======  =====

        1. First the values are added together and the sum is kept.

        .. code-block:: python

            that = what_is(this, for_the, one_and_only)  # it is not for you to read this

        .. versionadded:: 1.7 and this is not what we would like to see in the text of it
        """
    paragraphs = """Computes the mean of the values that were given, or of those along an axis. The result is a new array,
    unless out was given; see numpy.average and the manual for how weights can be used with this function. The values whose
    mean is wanted, which may be of any type that can be converted. Where the result should be stored instead of in a new
    array of its own. What should be done with the values that are not numbers at all. First the values are added together
    and the sum is kept."""
    assert prose(tmp_path / "p", text) == [" ".join(paragraphs.split())]
    assert any("JavaScript Object Notation" in text for text in read_docstrings([Path(json.__file__).parent]))


def test_what_is_no_english_is_left_out(tmp_path):
    left_out = """Too short to be it.
Dies ist ein deutscher Satz, welcher lang genug sein sollte, aber nicht englisch.
a = b + c; d = e(f, g) for x in y if z == 1 and w != 2
Gets ConvolutionalTransformerEncoderConfiguration of PretrainedTokenizerFastBackends if is in it or the
and 12345 67890 the 1234567 of 8910 it 3.14159 is 2.71828 for 1.41421 in 1.73205 as
This is a sentence that is long enough but holds a \0 control character."""
    kept = [SENTENCE.format(word) for word in ("one", "two")]
    assert prose(tmp_path / "p", "\n\n".join([*kept, *left_out.split("\n")])) == [" ".join(kept)]

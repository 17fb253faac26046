"""A virtual environment with the plain dependencies of a wheel alone: this interpreter's, linked; nothing is fetched.

What an extra brings is not hidden there but absent, from imports and from `importlib.metadata` alike.
"""

import subprocess
import sys
from importlib.metadata import distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def _asked(of, extras=()):
    """The requirements of a distribution on this system, with these of its extras."""
    for one in map(Requirement, of.requires or ()):
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield one


def plain_dependencies(wheel):
    """The distributions that pip installs beside the wheel where no extra is asked for, by their normalized names."""
    (root,) = distributions(path=[str(wheel)])
    found, waiting = {}, [*_asked(root)]
    while waiting:
        one = waiting.pop()
        key = canonicalize_name(one.name), frozenset(one.extras)
        if key not in found:
            found[key] = distribution(one.name)
            waiting += _asked(found[key], one.extras)
    return {name: of for (name, _), of in found.items()}


def make_environment(folder, contents):
    """Make a virtual environment in `folder` with the distributions `contents` and their commands; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = Path(folder) / "bin" / "python"
    where = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
    for of in contents:
        for top in {file.parts[0] for file in of.files} - {"..", "/", "__pycache__"}:
            if not (site / top).exists():  # a folder that several share
                (site / top).symlink_to(of.locate_file(top))
        for script in of.entry_points.select(group="console_scripts"):
            program = python.with_name(script.name)
            call = f"{script.module}.{script.attr}"
            program.write_text(f"#!{python}\nimport sys\n\nimport {script.module}\n\nsys.exit({call}())\n")
            program.chmod(0o755)
    return python

"""The Hub as publishing needs it: huggingface_hub's client with time-outs, repeated tries and errors of one line."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from budget_trainer.errors import InputError
from budget_trainer.hub_errors import LOG_IN, is_missing, retried

TIMEOUT_SECONDS = 120.0  # without a byte from the other side; the client itself would wait for ever


def has_token(hub_token: str | None = None) -> bool:
    """Whether there is a token that the client would use, as far as this machine knows: no network is asked."""
    from huggingface_hub import constants

    if hub_token or any(os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE")):
        return True
    try:
        return bool(Path(constants.HF_TOKEN_PATH).read_text(encoding="utf-8").strip())
    except OSError:
        return False


def check_locally(hub_model_id: str | None, hub_token: str | None = None) -> None:
    """InputError for what is known to fail without asking the Hub: no token, offline, a name that cannot be one."""
    from huggingface_hub import constants
    from huggingface_hub.utils import validate_repo_id

    if not has_token(hub_token):
        raise InputError(f"hub_token: there is none; {LOG_IN}")
    if constants.HF_HUB_OFFLINE:
        raise InputError("HF_HUB_OFFLINE: set, so the Hub is not asked for anything; unset it to publish")
    if hub_model_id is None:
        return
    try:
        validate_repo_id(hub_model_id)
    except ValueError:
        raise InputError(
            f"hub_model_id: {hub_model_id!r} is not a name on the Hub; write user/name, in letters, digits, '-', '_' and '.'"
        ) from None


def use_timeout(seconds: float) -> None:
    """Let every request of this process give up after `seconds` without an answer."""
    from huggingface_hub import get_session, set_client_factory

    session = get_session()

    def client() -> Any:
        return type(session)(event_hooks=session.event_hooks, follow_redirects=True, timeout=seconds)

    set_client_factory(client)


class Hub:
    """One model repository. Every method is tried again while the Hub is busy and raises InputError or RunError.

    `hub_token` None is what the client finds (HF_TOKEN, `hf auth login`). `sleep(seconds)` waits between tries.
    """

    def __init__(self, hub_token: str | None = None, *, sleep: Callable[[float], None] = time.sleep) -> None:
        from huggingface_hub import HfApi, get_token

        self.repo_id, self._sleep = "", sleep
        try:
            self._token = hub_token or get_token()
        except Exception as error:
            raise InputError(f"hub_token: it cannot be had ({type(error).__name__}); {LOG_IN}") from None
        self._api = HfApi(token=self._token, library_name="budget-trainer")

    def _try(self, what: str, action: Callable[[], Any]) -> Any:
        return retried(action, what, token=self._token, sleep=self._sleep)

    @property
    def url(self) -> str:
        return f"{self._api.endpoint}/{self.repo_id}"

    def sign_in(self) -> str:
        """The name of the token's owner. InputError for a token that can only read."""
        about = self._try("the Hub", self._api.whoami)
        role = ((about.get("auth") or {}).get("accessToken") or {}).get("role")
        if role == "read":
            raise InputError(f"hub_token: the token of {about.get('name')} can only read; {LOG_IN}")
        return str(about["name"])

    def open(self, repo_id: str, private: bool | None) -> None:
        """Take the repository, made where it is not there; `private` None is the owner's default.

        InputError where it is there and public, and should be private.
        """
        self.repo_id = repo_id
        info = self._try(repo_id, lambda: self._or_none(lambda: self._api.model_info(repo_id)))
        if info is None:
            self._try(repo_id, lambda: self._api.create_repo(repo_id, private=private, exist_ok=True))
        elif private and not info.private:
            raise InputError(
                f"hub_private_repo: {self.url} is there and public; make it private in its settings, or leave the flag out"
            )

    @staticmethod
    def _or_none(action: Callable[[], Any]) -> Any:
        """The Hub answers 401 and 404 alike for what is not there; whether the token is right is known by now."""
        try:
            return action()
        except Exception as error:
            if is_missing(error):
                return None
            raise

    def branches(self) -> dict[str, str]:
        """Name and newest commit of every branch."""
        refs = self._try(self.repo_id, lambda: self._api.list_repo_refs(self.repo_id))
        return {branch.name: branch.target_commit for branch in refs.branches}

    def make_branch(self, name: str) -> None:
        """A branch that begins at the repository's first commit: nothing of `main` is in it."""

        def make() -> None:
            first = self._api.list_repo_commits(self.repo_id)[-1].commit_id
            self._api.create_branch(self.repo_id, branch=name, revision=first, exist_ok=True)

        self._try(f"{self.repo_id}, {name}", make)

    def files(self, revision: str) -> dict[str, tuple[int, str]]:
        """Size and digest of every file there: SHA-256 of large ones, git's SHA-1 of the others."""
        return dict(self._try(f"{self.repo_id}, {revision}", lambda: self._tree(revision)))

    def _tree(self, revision: str) -> dict[str, tuple[int, str]]:
        from huggingface_hub.hf_api import RepoFile

        tree = self._api.list_repo_tree(self.repo_id, recursive=True, revision=revision)
        entries = [entry for entry in tree if isinstance(entry, RepoFile)]
        return {e.path: (e.size, e.lfs.sha256 if e.lfs is not None else e.blob_id) for e in entries}

    def read_text(self, revision: str, name: str) -> str:
        """A small text file of the repository."""

        def read() -> str:
            with tempfile.TemporaryDirectory() as folder:
                path = self._api.hf_hub_download(self.repo_id, name, revision=revision, local_dir=folder)
                return Path(path).read_text(encoding="utf-8", errors="replace")

        return str(self._try(f"{self.repo_id}, {name}", read))

    def commit(self, revision: str, files: Mapping[str, Path | bytes], delete: Sequence[str], message: str) -> str:
        """One commit, all of it or nothing; returns its name. A try whose answer was lost changes nothing when repeated."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        tried = False

        def send() -> str:
            nonlocal tried
            there = self._tree(revision) if tried or delete else {}
            tried = True
            gone = [CommitOperationDelete(name) for name in delete if name in there]
            new = [(name, file) for name, file in files.items() if name not in there or not same(file, there[name])]
            if not gone and not new:  # the try before was heard
                return self.branches()[revision]
            adding = [CommitOperationAdd(name, file) for name, file in new]
            done = self._api.create_commit(self.repo_id, [*gone, *adding], commit_message=message, revision=revision)
            return str(done.oid)

        return str(self._try(f"{self.repo_id}, {revision}", send))


def same(content: Path | bytes, there: tuple[int, str]) -> bool:
    """Whether a file is the one that the Hub lists with this size and digest."""
    size, digest = there
    if (len(content) if isinstance(content, bytes) else content.stat().st_size) != size:
        return False
    return digest == (_sha256(content) if len(digest) == 64 else _git_sha1(content, size))


def _sha256(content: Path | bytes) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    stat = content.stat()
    return _sha256_of_file(content, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)  # gigabytes, which are compared more than once
def _sha256_of_file(path: Path, size: int, changed: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _git_sha1(content: Path | bytes, size: int) -> str:
    data = content if isinstance(content, bytes) else content.read_bytes()
    return hashlib.sha1(f"blob {size}\0".encode() + data).hexdigest()

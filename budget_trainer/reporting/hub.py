"""What the Hub's client raises, as one line without secrets; what is worth another try. A leaf.

Nothing here names the HTTP library: huggingface_hub changed it between its versions 1 and 2.

What of a folder is published, as revisions of a model repository: known files only, no pickle, no code. A leaf.

The Hub as publishing needs it: huggingface_hub's client with time-outs, repeated tries and errors of one line.

From a folder to what is to be on the Hub: known files with their cards, reports without folders of this machine.

What is on the Hub is compared with what is to be there, and what changed is sent.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from budget_trainer.core.errors import InputError, RunError
from budget_trainer.core.markdown import without_folders
from budget_trainer.reporting import card
from budget_trainer.reporting import card as card_module
from budget_trainer.reporting.card import GLUE_REPORT, GlueScore, glue_scores, read_glue

log = logging.getLogger(__name__)
TRIES = 6
LONGEST_WAIT_SECONDS = 60.0
TOKENS = "https://huggingface.co/settings/tokens"
LOG_IN = f"log in with `hf auth login`, or set HF_TOKEN to a token with write access from {TOKENS}"
_SECRET = re.compile(r"(?:hf|api_org|hf_oauth|hf_jwt)_[A-Za-z0-9_.-]{6,}")
_AGAIN = {408, 409, 412, 425, 429}  # and 5xx: busy, or somebody else was committing
Result = TypeVar("Result")


def redacted(text: str, token: str | None = None) -> str:
    """`text` as one line without `token`, without what looks like one, and without the signed parts of addresses."""
    if token:
        text = text.replace(token, "<token>")
    text = _SECRET.sub("<token>", text)
    text = re.sub(r"(https?://[^\s?]+)\?\S+", r"\1", text)
    return " ".join(text.split())


def retried(
    action: Callable[[], Result],
    what: str,
    *,
    token: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
    tries: int = TRIES,
) -> Result:
    """`action()`, up to `tries` times with growing pauses while the Hub is busy, silent or out of reach.

    The client repeats only parts of an upload by itself. `action` must bear repetition. InputError for what a person has
    to mend, RunError where it is given up.
    """
    for number in range(1, tries + 1):
        try:
            return action()
        except Exception as error:
            if isinstance(error, InputError):
                raise
            refusal = _refused(error, what, token)
            if refusal is not None:
                raise refusal from None  # the client's own message may hold parts of the request
            reason = _reason(error, token)
            if number == tries:
                raise RunError(
                    f"{what}: {reason}, {tries} times; nothing half is left there, repeat it later"
                ) from None
            seconds = _pause(error, number)
            log.warning("%s: %s; again in %.0f s (%d of %d)", what, reason, seconds, number + 1, tries)
            sleep(seconds)
    raise AssertionError("unreachable")


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from: the client wraps failed uploads."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error of the client, if there was an answer."""
    response = _first(error, "response")
    return None if response is None else int(response.status_code)


def is_missing(error: BaseException) -> bool:
    """Whether a repository, revision or file is not there (or not for this token)."""
    return status_of(error) in (404, 410) or type(error).__name__ in ("RepositoryNotFoundError", "EntryNotFoundError")


def _refused(error: Exception, what: str, token: str | None) -> InputError | RunError | None:
    """The one line for an error that another try would not mend; None for the others."""
    status = status_of(error)
    if type(error).__name__ == "OfflineModeIsEnabled":
        return InputError("HF_HUB_OFFLINE: set, so the Hub is not asked for anything; unset it to publish")
    if status == 401:
        return InputError(f"hub_token: {what} does not accept this token (401); {LOG_IN}")
    if status == 403:
        return InputError(f"hub_token: this token may not write to {what} (403); {LOG_IN}")
    if status is not None and status not in _AGAIN and status < 500:
        where = "hub_model_id" if status == 404 else "publish"
        return InputError(
            f"{where}: {what}: the Hub refuses it ({_reason(error, token)}); check the name and its rights"
        )
    if status is not None or isinstance(error, json.JSONDecodeError):  # a page of a proxy in place of an answer
        return None
    if isinstance(error, ValueError):
        return InputError(f"publish: {what}: {redacted(str(error), token)}; correct it and repeat")
    local = isinstance(error, OSError) and error.errno is not None and error.filename is not None
    if local:
        return RunError(f"{what}: {redacted(str(error), token)}; repeat it when the file can be read")
    transient = isinstance(error, OSError | RuntimeError) or _of_http(error)
    return None if transient else RunError(f"{what}: {type(error).__name__}: {redacted(str(error), token)}")


def _of_http(error: BaseException) -> bool:
    return any(type(one).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "hf_xet") for one in chain(error))


def _reason(error: BaseException, token: str | None) -> str:
    """`HTTP 503: busy` or `ReadTimeout`, in a few words."""
    status, innermost = status_of(error), list(chain(error))[-1]
    if status is None:
        text = redacted(str(innermost), token)
        return f"{type(innermost).__name__}: {text}" if text else type(innermost).__name__
    said = _first(error, "server_message")
    return f"HTTP {status}: {redacted(str(said), token)[:200]}" if said else f"HTTP {status}"


def _pause(error: BaseException, number: int) -> float:
    """Seconds before the next try: what the Hub asks for, 5 minutes at most; else 1, 2, 4, ..., a minute at most."""
    headers: Any = getattr(_first(error, "response"), "headers", {})
    asked = str(headers.get("Retry-After", ""))
    limit = re.search(r"\br=0\b.*\bt=(\d+)", str(headers.get("RateLimit", "")))
    if asked.isdigit() or limit:
        return min(float(asked) if asked.isdigit() else float(limit.group(1)) + 1 if limit else 0.0, 300.0)
    return min(2.0 ** (number - 1), LONGEST_WAIT_SECONDS)


def _first(error: BaseException, name: str) -> Any:
    """The attribute `name` of the first error of the chain that has one."""
    return next((found for one in chain(error) if (found := getattr(one, name, None)) is not None), None)


MAIN, CARD, REPORT, PICTURE = "main", "README.md", "run_report.json", "run_report.png"
FINAL = "final"
MARK = re.compile(r"finetune-(\d+(?:\.\d+)?)")  # a time-marked model's folder, by per cent of the budget
_KNOWN = re.compile(
    r"config\.json|generation_config\.json|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|"
    r"added_tokens\.json|vocab\.json|vocab\.txt|merges\.txt|(?:spiece|sentencepiece\.bpe|spm|tokenizer)\.model|"
    r"chat_template\.jinja|[\w.-]+\.safetensors(?:\.index\.json)?|README\.md|(?:LICENSE|NOTICE)(?:\.txt|\.md)?|"
    r"(?:run|glue)_report\.(?:json|png|md)"
)
_TOKENIZERS = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model"),
    *("spiece.model", "spm.model", "sentencepiece.bpe.model"),
)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack", ".joblib", ".npy", ".npz")


@dataclass(frozen=True)
class Revision:
    """One revision of the repository: `files` by their name there, on disk or as bytes; `left_out` stays here."""

    name: str
    files: dict[str, Path | bytes]
    left_out: tuple[str, ...] = ()

    @property
    def weights(self) -> list[str]:
        return [name for name in self.files if name.endswith(".safetensors")]


def is_run(folder: Path) -> bool:
    """Whether `folder` is the output folder of a run, rather than of one model."""
    return (folder / FINAL).is_dir() or (bool(marked(folder)) and not (folder / "config.json").exists())


def marked(folder: Path) -> list[Path]:
    """The time-marked models of a run that are complete (they are renamed into place), by their share."""
    found = [(match, path) for path in folder.glob("finetune-*") if (match := MARK.fullmatch(path.name))]
    return [path for match, path in sorted(found, key=lambda pair: float(pair[0].group(1)))]


def read_revisions(folder: Path) -> list[Revision]:
    """What `folder` holds: time-marked models under their names, then the finished one as `main`. Cards come later.

    InputError for a folder that holds no model, or one that may not be published.
    """
    if not folder.is_dir():
        raise InputError(f"publish: {folder} is not a folder; give a run's --output_dir, or the folder of a model")
    if not is_run(folder):
        return [read_model(folder, MAIN)]
    final = [read_model(folder / FINAL, MAIN)] if (folder / FINAL).is_dir() else []
    return [read_model(path, path.name) for path in marked(folder)] + final


def read_model(folder: Path, name: str) -> Revision:
    """The model in `folder` as the revision `name`. InputError where it is not one, or its files are not safe to load."""
    config = _read_json(folder / "config.json", folder)
    if "auto_map" in config:
        raise InputError(
            f"publish: {folder} needs code of its own (auto_map in config.json), which is not published; use a type that "
            "Transformers has"
        )
    entries = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    files: dict[str, Path | bytes] = {}
    for path in entries:
        if path.is_file() and _KNOWN.fullmatch(path.name):
            files[path.name] = path
    revision = Revision(name, files, tuple(path.name for path in entries if path.name not in files))
    _check_weights(folder, revision)
    if not any(name in files for name in _TOKENIZERS):
        raise InputError(
            f"publish: {folder} has no tokenizer ({_TOKENIZERS[0]}, {_TOKENIZERS[1]}, ...); save it there with "
            "tokenizer.save_pretrained"
        )
    return revision


def _read_json(path: Path, folder: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content) if "model_type" in content else _no_model(folder, "config.json names no model_type")
    except FileNotFoundError:
        return _no_model(folder, "no config.json")
    except (OSError, ValueError, TypeError) as error:
        return _no_model(folder, f"config.json cannot be read: {error}")


def _no_model(folder: Path, reason: str) -> dict[str, Any]:
    raise InputError(
        f"publish: {folder} is not a model's folder ({' '.join(reason.split())}); give a run's --output_dir, or a folder that "
        "save_pretrained wrote"
    )


def _check_weights(folder: Path, revision: Revision) -> None:
    pickles = [name for name in revision.left_out if name.endswith(PICKLES)]
    if not revision.weights:
        reason = f"only {pickles[0]}, whose format can run code when it is loaded" if pickles else "none"
        raise InputError(
            f"publish: {folder} has no weights as safetensors ({reason}); save them with model.save_pretrained"
        )
    for name in revision.weights:
        if not is_safetensors(folder / name):
            raise InputError(f"publish: {folder / name} is no complete safetensors file; save the model anew")
    for index in [name for name in revision.files if name.endswith(".safetensors.index.json")]:
        content = json.loads((folder / index).read_text(encoding="utf-8"))
        missing = set(content.get("weight_map", {}).values()) - set(revision.weights)
        if missing:
            raise InputError(
                f"publish: {folder} lacks {min(missing)}, which {index} names; save the model anew with save_pretrained"
            )


def is_safetensors(path: Path) -> bool:
    """Whether the file begins with a header of the format, and is as long as that says: 8 bytes, JSON, the tensors."""
    size = path.stat().st_size
    with open(path, "rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size, 100_000_000):
            return False
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return False
    return size == 8 + length + max(ends, default=0)


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


GLUE_TEXT = "glue_report.md"


@dataclass(frozen=True)
class PushOptions:
    """Where to and how. `hub_model_id` None is the folder's name, one without owner belongs to the token's owner.

    `license` and `language` (codes) None are those of the run's recipe; `overwrite` replaces another model. `glue_report`
    is the folder of a suite's glue_report.json, None the one that is published; where that has none, the scores that the
    Hub has of the same weights stay.
    """

    hub_model_id: str | None = None
    hub_private_repo: bool | None = None
    license: str | None = None
    language: str | None = None
    overwrite: bool = False
    glue_report: Path | None = None

    def command(self, folder: Path) -> str:
        """The command that repeats the push."""
        words = ["python", "-m", "budget_trainer.publish", str(folder)]
        words += ["--hub_model_id", self.hub_model_id] if self.hub_model_id else []
        words += ["--hub_private_repo"] if self.hub_private_repo else []
        for name in ("license", "language", "glue_report"):
            words += [f"--{name}", str(getattr(self, name))] if getattr(self, name) else []
        return shlex.join(words)


def default_name(folder: Path) -> str:
    """The name of the run's folder, or the model's."""
    whole = folder.resolve()
    return whole.parent.name if whole.name == FINAL else whole.name


def prepare(
    folder: Path, options: PushOptions, repo_id: str, scores_there: Sequence[GlueScore] = ()
) -> list[Revision]:
    """What is to be on the Hub: the revisions of `folder` with their cards, `main` last. InputError as `read_revisions`.

    A card that a person has edited stays as it is; InputError where a licence or language is asked for beside it.
    `scores_there` are the card's where no suite is given and none lies in the folder.
    """
    card_module.check_license(options.license)
    revisions = read_revisions(folder)
    report, scored = _report(folder), options.glue_report or folder
    if options.glue_report is not None and not (scored / GLUE_REPORT).is_file():
        raise InputError(
            f"glue_report: {scored} has no {GLUE_REPORT}; give the --output_dir of a suite that has ended"
        )
    recipe = report.get("recipe") or {}
    license = options.license or recipe.get("license")
    language = options.language or recipe.get("language")
    marks = [revision.name for revision in revisions if revision.name != MAIN]
    prepared = []
    for revision in revisions:
        if revision.name == MAIN:
            scores = read_glue(scored) or list(scores_there)
            card = _main_card(folder, scores, revision, report, marks, repo_id, license, language)
            revision = _with_reports(folder, scored, revision)
        else:
            kind = str(_config(revision)["model_type"])
            card = card_module.marked_card_text(kind, mark=revision.name, license=license, path=repo_id)
        revision = _public(revision)
        own = revision.files.get(CARD)
        if isinstance(own, Path) and not card_module.sealed(own.read_text(encoding="utf-8", errors="replace")):
            if options.license or options.language:
                raise InputError(
                    f"license: {own} was edited, so it stays as it is; write licence and language into its first lines"
                )
        else:
            revision = replace(revision, files={**revision.files, CARD: card.encode()})
        prepared.append(revision)
    return prepared


def _report(folder: Path) -> dict[str, Any]:
    path = folder / REPORT
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{REPORT}: {path} cannot be read ({error}); mend it, or move it away") from None


def _config(revision: Revision) -> dict[str, Any]:
    path = revision.files["config.json"]
    assert isinstance(path, Path)
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _main_card(
    folder: Path,
    scores: Sequence[GlueScore],
    revision: Revision,
    report: dict[str, Any],
    marks: Sequence[str],
    repo_id: str,
    license: str | None,
    language: str | None,
) -> str:
    config = _config(revision)
    kind = str((config.get("architectures") or [""])[0])
    return card_module.card_text(
        report or {"model_type": config["model_type"]},
        name=repo_id.split("/")[-1],
        license=license,
        language=(language or "").replace(",", " ").split(),
        scores=scores,
        path=repo_id,
        revisions=marks,
        picture=PICTURE in revision.files or (folder / PICTURE).is_file(),
        classifier=kind.endswith("ForSequenceClassification"),
    )


def _with_reports(folder: Path, scored: Path, revision: Revision) -> Revision:
    """What lies beside `final/` and belongs to it: the run's report, the picture, GLUE."""
    files = dict(revision.files)
    for name in (REPORT, PICTURE, GLUE_REPORT, "glue_report.png", GLUE_TEXT):
        path = (folder if name in (REPORT, PICTURE) else scored) / name
        if path.is_file():
            files[name] = path
    return replace(revision, files=files)


_PUBLIC: dict[str, Callable[[str], bytes]] = {
    REPORT: lambda text: card_module.public_report(json.loads(text)),
    GLUE_REPORT: lambda text: card_module.public_json(json.loads(text)),
    GLUE_TEXT: lambda text: str(without_folders(text)).encode(),
}


def _public(revision: Revision) -> Revision:
    """The revision whose reports are without what is private."""
    files = dict(revision.files)
    for name, made in _PUBLIC.items():
        path = files.get(name)
        if isinstance(path, Path):
            try:
                files[name] = made(path.read_text(encoding="utf-8"))
            except (ValueError, AttributeError, TypeError) as error:
                raise InputError(f"{name}: {path} cannot be read ({error}); mend it, or move it away") from None
    return replace(revision, files=files)


WEIGHTS = (".safetensors", *PICKLES, ".onnx", ".gguf")
KEPT = (".gitattributes", "LICENSE", "NOTICE")  # by --overwrite


def scores_there(hub: Hub, revisions: Sequence[Revision]) -> list[GlueScore]:
    """The scores of glue_report.json on the Hub, which the card keeps: where `main` has the same weights and none of ours.

    InputError where they cannot be read.
    """
    ours = next((revision for revision in revisions if revision.name == MAIN), None)
    if ours is None or GLUE_REPORT in ours.files:
        return []
    there = hub.files(MAIN)
    if GLUE_REPORT not in there or _other_model(ours, there) is not None:
        return []
    return glue_scores(hub.read_text(MAIN, GLUE_REPORT), f"{hub.url}, {MAIN},")


def push(
    hub: Hub, revisions: Sequence[Revision], *, overwrite: bool, told: Callable[[str, dict[str, Any]], None]
) -> None:
    """Bring every revision to its state here, one commit each, and tell what was done as (name, account).

    Nothing is sent where nothing changed. InputError where another model is there, unless `overwrite`.
    """
    branches = hub.branches()
    for revision in revisions:
        if revision.name not in branches and revision.name != MAIN:
            hub.make_branch(revision.name)
        told(revision.name, _push_one(hub, revision, overwrite, branches.get(revision.name)))


def _push_one(hub: Hub, revision: Revision, overwrite: bool, newest: str | None) -> dict[str, Any]:
    there = hub.files(revision.name)
    files = dict(revision.files)
    another = _other_model(revision, there)
    if another is not None and not overwrite:
        raise InputError(
            f"hub_model_id: {hub.url}, {revision.name}, holds another model ({another} differs); give another name, or "
            "--overwrite to replace it (git keeps the old one)"
        )
    kept = another is None and not overwrite and _edited(hub, revision, there)
    if kept:
        log.warning("%s, %s: %s was edited there and stays; --overwrite replaces it", hub.repo_id, revision.name, CARD)
        del files[CARD]
    changed = {name: content for name, content in files.items() if name not in there or not same(content, there[name])}
    gone = [name for name in there if name not in files and not name.startswith(KEPT)] if another is not None else []
    if changed or gone:
        newest = hub.commit(revision.name, changed, gone, f"Publish {len(changed)} files with budget-trainer")
    account = {"commit": newest, "sent": len(changed), "unchanged": len(files) - len(changed)}
    return account | ({"card": "edited there, kept"} if kept else {}) | ({"deleted": len(gone)} if gone else {})


def _other_model(revision: Revision, there: dict[str, tuple[int, str]]) -> str | None:
    """The file by which the repository holds another model than ours: weights that differ. None where it does not."""
    weights = [name for name in there if name.endswith(WEIGHTS)]
    for name in revision.weights:
        if name in there and not same(revision.files[name], there[name]):
            return name
    if weights and not set(weights) & set(revision.weights):
        return weights[0]
    return "config.json" if not weights and "config.json" in there else None


def _edited(hub: Hub, revision: Revision, there: dict[str, tuple[int, str]]) -> bool:
    """Whether the card there is a person's: not ours as we wrote it, and more than the first lines of a new one."""
    if CARD not in there or same(revision.files[CARD], there[CARD]):
        return False
    text = hub.read_text(revision.name, CARD)
    body = text.split("\n---", 1)[-1] if text.startswith("---") else text
    return bool(body.strip(" \n-")) and not card.sealed(text)

"""A model folder on the Hugging Face Hub: which files are published, and the repository that receives them.

huggingface_hub sends the files, asks a busy Hub again and leaves out what has not changed. Here stands what it does not
know: only files that are safe to load go, another model is not overwritten, a card that somebody edited stays, and every
error is one line without secrets.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import get_session, set_client_factory, validate_repo_id
from safetensors import SafetensorError, safe_open

from budget_trainer.core.command import redacted
from budget_trainer.core.errors import InputError, RunError
from budget_trainer.core.io import sha256
from budget_trainer.reporting.card import (
    FINE_TUNING,
    GLUE_REPORT,
    GlueScore,
    card_text,
    is_unedited,
    parse_glue_scores,
)
from budget_trainer.reporting.report import PICTURE, REPORT, in_run, public_report

log = logging.getLogger(__name__)
MAIN, FINAL, CARD = "main", "final", "README.md"
MARK = re.compile(r"finetune-(\d+(?:\.\d+)?)")  # a time-marked model's folder, by per cent of the budget
TIMEOUT_SECONDS = 120.0  # without a byte from the other side; the client itself would wait for ever
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token with write access from https://huggingface.co/settings/tokens"
_OFFLINE = "HF_HUB_OFFLINE: set, so the Hub is not asked for anything; unset it to publish"
_GLUE_FILES = (GLUE_REPORT, "glue_report.png", "glue_report.md")
_TOKENIZERS = (
    "tokenizer.json vocab.txt vocab.json tokenizer.model spiece.model spm.model sentencepiece.bpe.model".split()
)
# Patterns of the files that are published; all others stay here.
_PUBLISHED = """config.json generation_config.json *.safetensors *.safetensors.index.json tokenizer_config.json
special_tokens_map.json added_tokens.json merges.txt chat_template.jinja README.md LICENSE LICENSE.txt LICENSE.md NOTICE
NOTICE.txt NOTICE.md run_report.json run_report.png""".split()
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack", ".joblib", ".npy", ".npz")
_WEIGHTS = (".safetensors", *_PICKLES, ".onnx", ".gguf")
_KEPT = (".gitattributes", "LICENSE", "NOTICE")  # of another model that is replaced
_BUSY = {408, 409, 412, 425, 429}  # and 5xx: the same request may be accepted later


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
    at_every_save: bool = False  # of a run: each time-marked model goes as soon as it is saved, else all at the end

    def name(self, folder: Path) -> str:
        """The repository's: as it was given, or that of the run's folder or the model's."""
        whole = in_run(folder)
        return self.hub_model_id or (whole.parent.name if whole.name == FINAL else whole.name)

    def words(self, folder: Path) -> list[str]:
        """The arguments of `python -m budget_trainer.publish` for this push, but for --overwrite."""
        named = ("hub_model_id", "license", "language", "glue_report")
        given = [word for name in named if (value := getattr(self, name)) for word in (f"--{name}", str(value))]
        return [str(folder), *given, *["--hub_private_repo"] * bool(self.hub_private_repo)]


@dataclass(frozen=True)
class _Revision:
    """One branch of the repository: `files` by their name there, on disk or as bytes; `left_out` stays here."""

    name: str
    files: dict[str, Path | bytes]
    config: dict[str, Any]
    left_out: tuple[str, ...] = ()


class HubBusy(RunError):
    """The Hub is out of reach, silent or busy: the same push may succeed later."""


def marked_models(folder: Path) -> list[Path]:
    """The time-marked models of a run that are complete (they are renamed into place), by their share of the budget."""
    found = [path for path in folder.glob("finetune-*") if MARK.fullmatch(path.name)]
    return sorted(found, key=lambda path: float(path.name.removeprefix("finetune-")))


def _read_revisions(folder: Path) -> list[_Revision]:
    """What `folder` holds: of a run the time-marked models under their names, then the finished one as `main`.

    The cards come later, see `prepare`. InputError for a folder that holds no model, or one that may not be published.
    """
    if not folder.is_dir():
        raise InputError(f"publish: {folder} is not a folder; give a run's --output_dir, or the folder of a model")
    marks, final = marked_models(folder), folder / FINAL
    if not final.is_dir() and (not marks or (folder / "config.json").exists()):
        return [_read_model(folder, MAIN)]
    revisions = [_read_model(path, path.name) for path in marks]
    return revisions + ([_read_model(final, MAIN)] if final.is_dir() else [])


def _read_model(folder: Path, name: str) -> _Revision:
    def refused(reason: str) -> InputError:
        return InputError(f"publish: {folder} {reason}")

    try:
        config = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        reason = "" if "model_type" in config else "config.json names no model_type"
    except FileNotFoundError:
        reason = "no config.json"
    except (OSError, ValueError, TypeError) as error:
        reason = f"config.json cannot be read: {' '.join(str(error).split())}"
    if reason:
        raise refused(f"is not a model's folder ({reason}); give a run's --output_dir, or what save_pretrained wrote")
    if "auto_map" in config:
        raise refused(
            "needs code of its own (auto_map in config.json), which stays here; use a type that Transformers has"
        )
    paths = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    patterns = [*_PUBLISHED, *_TOKENIZERS, *_GLUE_FILES]
    known = [path for path in paths if path.is_file() and any(fnmatchcase(path.name, one) for one in patterns)]
    files: dict[str, Path | bytes] = {path.name: path for path in known}
    left_out = tuple(path.name for path in paths if path.name not in files)
    weights = [path for path in known if path.suffix == ".safetensors"]
    if not weights:
        pickles = [name for name in left_out if name.endswith(_PICKLES)]
        reason = f"only {pickles[0]}, whose format can run code when it is loaded" if pickles else "none"
        raise refused(f"has no weights as safetensors ({reason}); save them with model.save_pretrained")
    for path in weights:
        try:
            with safe_open(path, framework="np"):  # reads the header, and compares it with the file's length
                pass
        except SafetensorError:
            raise refused(f"is damaged: {path.name} is no complete safetensors file; save the model anew") from None
    for index in folder.glob("*.safetensors.index.json"):
        missing = {*json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()} - {*files}
        if missing:
            raise refused(f"lacks {min(missing)}, which {index.name} names; save the model anew with save_pretrained")
    if not any(name in files for name in _TOKENIZERS):
        tried = ", ".join(_TOKENIZERS[:2])
        raise refused(f"has no tokenizer ({tried}, ...); save it there with tokenizer.save_pretrained")
    return _Revision(name, files, config, left_out)


def prepare(folder: Path, options: PushOptions, repo_id: str, hub_scores: Sequence[GlueScore] = ()) -> list[_Revision]:
    """What is to be on the Hub: the revisions of `folder` with their cards and reports, `main` last.

    `hub_scores` are the card's where no suite is given and none lies in the folder. InputError for a folder that holds no
    model, or one that may not be published, and where a licence or language is asked for beside a card that a person has
    edited: that stays as it is.
    """
    revisions = _read_revisions(folder)
    report = _read_json(folder / REPORT) if (folder / REPORT).exists() else {}
    scored = options.glue_report or folder
    if (scored / GLUE_REPORT).is_file():
        scores: Sequence[GlueScore] = parse_glue_scores(_read_text(scored / GLUE_REPORT), str(scored / GLUE_REPORT))
    elif options.glue_report is None:
        scores = hub_scores
    else:
        raise InputError(
            f"glue_report: {scored} has no {GLUE_REPORT}; give the --output_dir of a suite that has ended"
        )
    own = _read_json(folder / GLUE_REPORT) if (folder / GLUE_REPORT).is_file() else {}
    tuned = (own.get(FINE_TUNING) if isinstance(own, dict) else None) or {}
    recipe = report.get("recipe") or {}
    prepared = []
    for revision in revisions:
        files, config, is_main = dict(revision.files), revision.config, revision.name == MAIN
        if is_main:
            beside = [folder / REPORT, folder / PICTURE, *(scored / name for name in _GLUE_FILES)]
            files |= {path.name: path for path in beside if path.is_file()}
        about = report if is_main and report else {**(tuned if is_main else {}), "model_type": config["model_type"]}
        card = card_text(
            about,
            name=repo_id.split("/")[-1],
            path=repo_id,
            license=options.license or recipe.get("license"),
            language=(options.language or recipe.get("language") or "").replace(",", " ").split(),
            scores=scores if is_main else (),
            marks=[revision.name for revision in revisions if revision.name != MAIN],
            mark=None if is_main else revision.name,
            picture=PICTURE in files,
            classifier=str((config.get("architectures") or [""])[0]).endswith("ForSequenceClassification"),
        )
        for name in (REPORT, GLUE_REPORT):
            path = files.get(name)
            if isinstance(path, Path):
                content = _read_json(path)
                files[name] = public_report(content if isinstance(content, dict) else {"scores": content})
        own = files.get(CARD)
        if not isinstance(own, Path) or is_unedited(_read_text(own)):
            files[CARD] = card.encode()
        elif options.license or options.language:
            raise InputError(
                f"license: {own} was edited, so it stays as it is; write licence and language into its first lines"
            )
        prepared.append(replace(revision, files=files))
    return prepared


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read_text(path))
    except ValueError as error:
        raise InputError(f"{path.name}: {path} cannot be read ({error}); repair it, or move it away") from None


def check_locally(repo_id: str, hub_token: str | None = None) -> None:
    """InputError for what is known to fail without asking the Hub: no token, offline, a name that cannot be one."""
    # With HF_OIDC_RESOURCE the client gets a token from the Hub: it is asked only when something is sent.
    if not (hub_token or os.environ.get("HF_OIDC_RESOURCE") or get_token()):
        raise InputError(f"hub_token: there is none; {_LOG_IN}")
    if constants.HF_HUB_OFFLINE:
        raise InputError(_OFFLINE)
    try:
        validate_repo_id(repo_id)
    except ValueError:
        raise InputError(
            f"hub_model_id: {repo_id!r} is not a name on the Hub; write user/name, in letters, digits, '-', '_' and '.'"
        ) from None


def push(
    folder: Path, options: PushOptions, hub_token: str | None = None, *, only_marked: bool = False
) -> dict[str, Any]:
    """Bring what `folder` holds to the Hub, or only its time-marked models; what is there already is not sent again.

    Returns the account: `repo_id`, `url`, and `revisions` (name -> the commit that it is now, and what became of its card).
    Raises InputError for what a person has to correct, HubBusy or RunError where the Hub does not do it.
    """
    repo_id = options.name(folder)
    check_locally(repo_id, hub_token)
    (*_, last) = prepare(folder, options, repo_id)  # whatever is wrong here is known before the Hub hears of it
    session = get_session()
    set_client_factory(
        lambda: type(session)(event_hooks=session.event_hooks, follow_redirects=True, timeout=TIMEOUT_SECONDS)
    )
    with _one_line("the Hub", hub_token):
        token = hub_token or get_token()
        api = HfApi(token=token, library_name="budget-trainer")
        about = api.whoami()
    if ((about.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
        raise InputError(f"hub_token: the token of {about.get('name')} can only read; {_LOG_IN}")
    repo_id = repo_id if "/" in repo_id else f"{about['name']}/{repo_id}"
    url = f"{api.endpoint}/{repo_id}"
    with _one_line(repo_id, token):
        api.create_repo(repo_id, private=options.hub_private_repo, exist_ok=True)
        if options.hub_private_repo and not api.model_info(repo_id).private:
            raise InputError(
                f"hub_private_repo: {url} is there and public; make it private in its settings, or leave the flag out"
            )
        # The card keeps the scores that the Hub has as long as the weights stay the same.
        there, scores = _files_on_hub(api, repo_id, MAIN), []
        if last.name == MAIN and GLUE_REPORT in there and not _other_model(last, there):
            scores = parse_glue_scores(_download(api, repo_id, MAIN, GLUE_REPORT), f"{url}, {MAIN},")
    account: dict[str, Any] = {"repo_id": repo_id, "url": url, "revisions": {}}
    earlier = {sha256(file) for name in ("final-*", "*-finetune-*") for file in folder.glob(f"{name}/*.safetensors")}
    for revision in prepare(folder, options, repo_id, scores):
        if revision.name != MAIN or not only_marked:
            with _one_line(f"{repo_id}, {revision.name}", token):
                sent = _update(api, repo_id, revision, options.overwrite, earlier)
                account["revisions"][revision.name] = sent
            log.info("%s, %s: commit %s", url, revision.name, sent["commit"])
    return account


def _update(
    api: HfApi, repo_id: str, revision: _Revision, overwrite: bool, earlier: Collection[str] = ()
) -> dict[str, Any]:
    """Bring one branch to its state here, in one commit. InputError where another model is there, unless `overwrite`.

    `earlier` are the SHA-256 of the weights that the same run has made in shorter budgets: these are replaced.
    """
    name, files = revision.name, dict(revision.files)
    if name != MAIN and name not in {branch.name for branch in api.list_repo_refs(repo_id).branches}:
        first = api.list_repo_commits(repo_id)[-1].commit_id  # nothing of `main` is in it
        api.create_branch(repo_id, branch=name, revision=first, exist_ok=True)
    there = _files_on_hub(api, repo_id, name)
    differs = _other_model(revision, there)
    if differs and not overwrite and there.get(differs) not in earlier:
        raise InputError(
            f"hub_model_id: {api.endpoint}/{repo_id}, {name}, holds another model ({differs} differs); give another name, or "
            "--overwrite to replace it (git keeps the old one)"
        )
    edited = not overwrite and CARD in there and _is_edited(_download(api, repo_id, name, CARD))
    if edited:
        log.warning("%s, %s: %s was edited there and stays; --overwrite replaces it", repo_id, name, CARD)
        del files[CARD]
    operations: list[Any] = [CommitOperationAdd(file, content) for file, content in files.items()]
    if differs:
        gone = [file for file in there if file not in files and not file.startswith(_KEPT)]
        operations += [CommitOperationDelete(file) for file in gone]
    commit = api.create_commit(repo_id, operations, commit_message="Publish with budget-trainer", revision=name)
    return {"commit": commit.oid, **({"card": "edited there, kept"} if edited else {})}


def _is_edited(card: str) -> bool:
    """Whether a card on the Hub is a person's: not as we wrote it, and more than the metadata of a new repository."""
    body = card.split("\n---", 1)[-1] if card.startswith("---") else card
    return bool(body.strip(" \n-")) and not is_unedited(card)


def _files_on_hub(api: HfApi, repo_id: str, revision: str) -> dict[str, str | None]:
    """The names of the files of a branch, with the SHA-256 of those that are large (weights are)."""
    tree = api.list_repo_tree(repo_id, recursive=True, revision=revision)
    return {entry.path: entry.lfs.sha256 if entry.lfs else None for entry in tree if isinstance(entry, RepoFile)}


def _download(api: HfApi, repo_id: str, revision: str, name: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return _read_text(Path(api.hf_hub_download(repo_id, name, revision=revision, local_dir=folder)))


def _other_model(revision: _Revision, there: dict[str, str | None]) -> str | None:
    """The file by which the repository holds another model than ours: weights that differ. None where it does not."""
    ours = {name: sha256(file) for name, file in revision.files.items() if name.endswith(".safetensors")}
    theirs = [name for name in there if name.endswith(_WEIGHTS)]
    for name, digest in ours.items():
        if name in there and there[name] != digest:
            return name
    if theirs and not set(theirs) & set(ours):
        return theirs[0]
    return "config.json" if not theirs and "config.json" in there else None


@contextmanager
def _one_line(what: str, token: str | None) -> Iterator[None]:
    """Turn the client's errors, which may hold parts of a request, into errors of one line without secrets."""
    try:
        yield
    except (InputError, RunError):
        raise
    except Exception as error:
        raise _explain(error, what, token) from None


def _explain(error: Exception, what: str, token: str | None) -> InputError | RunError:
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:  # the client wraps failed uploads
        causes.append(causes[-1].__cause__)
    if isinstance(error, OfflineModeIsEnabled):
        return InputError(_OFFLINE)
    answered = next((cause for cause in causes if isinstance(cause, HfHubHTTPError)), None)
    if answered is not None:
        status = answered.response.status_code
        reason = redacted(f"HTTP {status}: {answered.server_message or ''}", token)[:200].rstrip(": ")
        if status == 401:
            return InputError(f"hub_token: {what} does not accept this token (401); {_LOG_IN}")
        if status == 403:
            return InputError(f"hub_token: this token may not write to {what} (403); {_LOG_IN}")
        if status < 500 and status not in _BUSY:
            return InputError(f"publish: {what}: the Hub refuses it ({reason}); check the name and its rights")
    else:
        reason = redacted(f"{type(causes[-1]).__name__}: {causes[-1]}", token)
        if isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError):  # JSON: a proxy's page
            return InputError(f"publish: {what}: {reason}; correct it and repeat")
        if isinstance(error, OSError) and error.filename is not None:
            return RunError(f"{what}: {reason}; repeat it when the file can be read")
    return HubBusy(f"{what}: {reason}; nothing half is left there, repeat it later")

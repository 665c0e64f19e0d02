"""Models of the Hugging Face hub: which commit, which of its files, and all the ways in which they cannot be had."""

from __future__ import annotations

import contextlib
import fnmatch
import queue
import re
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from tfmt.bert.checkpoint import INDEX_FILE, KERAS_FILE, WEIGHTS_FILE
from tfmt.bert.digests import file_digest, json_digest, recall, remember
from tfmt.errors import RequestError, RequestWarning, RunError
from tfmt.files import UnwritableError, write_whole
from tfmt.words import counted

CONFIG_FILE = "config.json"
_TOKENIZER_FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                    "added_tokens.json")  # fmt: skip
_SHARDS = "model-*-of-*.safetensors"
_OTHER_WEIGHTS = ("*.bin", "*.safetensors", "*.h5", "*.msgpack", "*.index.json", "*.pt", "*.gguf", "*.onnx")
_COMMIT = re.compile(r"[0-9a-f]{40}")

# Beyond what the client waits for an answer (HF_HUB_ETAG_TIMEOUT, 10 s): name servers, and answers byte by byte.
METADATA_GRACE_SECONDS = 5.0
# A download ends where no byte has come for so long; the client itself tries again within it.
STALL_SECONDS = 60.0

_T = TypeVar("_T")


@dataclass(frozen=True)
class Snapshot:
    """A model as the hub's cache on this machine holds it.

    Attributes:
      folder: its files.
      commit: the commit that they are of, 40 hex digits.
    """

    folder: Path
    commit: str


@dataclass(frozen=True)
class _File:
    """What the hub says of a file: bytes, and the sha256 of a large one; None where it says nothing."""

    size: int | None
    sha256: str | None


@dataclass(frozen=True)
class _Commit:
    """A commit of a repository; one that is known by all its digits never changes."""

    name: str
    sha: str
    files: dict[str, _File]


class _UnreachableError(Exception):
    """The hub gave no answer that can be used; the text says what it does, after `the hub`."""


def fetch_model(name: str, revision: str = "", *, check: Callable[[Path], object] = lambda folder: None) -> Snapshot:
    """A hub model's folder with all that decides its weights and tokens, downloaded where it is not here yet.

    The hub is asked once which commit the revision is, and a commit that is here whole is used without asking. Where
    the hub does not answer, what is in its cache is used, with a warning that says so.

    Args:
      name: the repository.
      revision: a branch, tag or commit; empty for `main`.
      check: called with the folder as soon as it holds config.json; what it raises ends the download.

    Raises:
      RequestError: there is no such name or revision, no right to it, no weights that tfmt reads in it, or
        HF_HUB_OFFLINE is set and the model is not here.
      RunError: network, hub or disk failed.
    """
    if _is_offline():
        found = cached_model(name, revision)
        if found is None:
            raise _offline_error(name, revision, "all of it")
        return found
    if _COMMIT.fullmatch(revision) and (kept := _recall_commit(name, revision)) and (found := _whole(kept)):
        return found
    try:
        commit = _ask(name, revision)
        return _fetch(commit, _choose(commit, revision), revision, check)
    except _UnreachableError as error:
        found = cached_model(name, revision)
        if found is None:
            raise RunError(
                f"--model={_at(name, revision)}: the hub ({_endpoint()}) {error}, and its cache on this machine does "
                "not hold the model; see to the network, or give a local folder"
            ) from None
        warnings.warn(
            f"--model={_at(name, revision)}: the hub ({_endpoint()}) {error}; commit {found.commit[:10]} from its "
            "cache on this machine is used",
            RequestWarning,
            stacklevel=2,
        )
        return found


def fetch_config(name: str, revision: str = "") -> Path:
    """A folder that holds a hub model's config.json, from the cache or else downloaded; its weights never are.

    Raises:
      RequestError, RunError: as `fetch_model`.
    """
    if found := _cached(name, CONFIG_FILE, revision or "main"):
        return found.parent
    if _is_offline():
        raise _offline_error(name, revision, f"its {CONFIG_FILE}")
    try:
        return _download(_ask(name, revision), CONFIG_FILE, revision).parent
    except _UnreachableError as error:
        raise RunError(
            f"--model={_at(name, revision)}: the hub ({_endpoint()}) {error}; see to the network, or give a local "
            "folder"
        ) from None


def cached_model(name: str, revision: str = "") -> Snapshot | None:
    """What the hub's cache on this machine holds whole of a model; None where it does not. The hub is not asked."""
    config = _cached(name, CONFIG_FILE, revision or "main")
    if config is None:
        return None
    found = Snapshot(config.parent, config.parent.name)
    commit = _recall_commit(name, found.commit)
    if commit is not None:
        return _whole(commit)
    # Some other program downloaded it, and only the hub knows whether that is all.
    weights = any((found.folder / file).is_file() for file in (WEIGHTS_FILE, INDEX_FILE, KERAS_FILE))
    vocabulary = any((found.folder / file).is_file() for file in ("vocab.txt", "tokenizer.json"))
    return found if weights and vocabulary else None


# ---- what the hub says ---------------------------------------------------------------------------------------------


def _ask(name: str, revision: str) -> _Commit:
    """The commit that a revision is now, and its files."""
    from huggingface_hub import HfApi, constants

    seconds = constants.HF_HUB_ETAG_TIMEOUT
    api = HfApi(endpoint=_endpoint())

    def call() -> _Commit:
        told = api.model_info(name, revision=revision or "main", timeout=seconds, files_metadata=True)
        if told.sha is None or told.siblings is None or not _COMMIT.fullmatch(told.sha):
            raise ValueError(f"no commit with files: {told.sha}")
        files = {file.rfilename: _File(file.size, file.lfs.sha256 if file.lfs else None) for file in told.siblings}
        return _Commit(name, told.sha, files)

    with _translated(name, revision):
        commit = _watched(call, seconds + METADATA_GRACE_SECONDS, "gave no answer in")
    remember("hub", _key(name, commit.sha), {file: asdict(facts) for file, facts in commit.files.items()})
    return commit


def _recall_commit(name: str, sha: str) -> _Commit | None:
    """What the hub said of a commit earlier."""
    try:
        files = {file: _File(**facts) for file, facts in recall("hub", _key(name, sha)).items()}
    except (TypeError, AttributeError):
        return None
    return _Commit(name, sha, files)


def _key(name: str, sha: str) -> str:
    return json_digest([_endpoint(), name, sha])


def _choose(commit: _Commit, revision: str) -> list[str]:
    """The files that decide weights and tokens, config.json first and the weights last.

    Raises:
      RequestError: there is no config, or there are no weights that tfmt reads; it says what there is.
    """
    at = f"--model={_at(commit.name, revision)}"
    if CONFIG_FILE not in commit.files:
        raise RequestError(f"{at}: the repository has no {CONFIG_FILE}; is it a BERT in transformers' layout?")
    first = [CONFIG_FILE, *(file for file in _TOKENIZER_FILES if file in commit.files)]
    if WEIGHTS_FILE in commit.files:
        return [*first, WEIGHTS_FILE]
    if INDEX_FILE in commit.files:
        return [*first, INDEX_FILE, *sorted(fnmatch.filter(commit.files, _SHARDS))]
    if KERAS_FILE in commit.files:
        return [*first, KERAS_FILE]
    there = sorted({file for kind in _OTHER_WEIGHTS for file in fnmatch.filter(commit.files, kind)})
    more = f" and {len(there) - 3} more" if len(there) > 3 else ""
    pinned = f', revision="{revision}"' if revision else ""
    raise RequestError(
        f"{at}: the repository has no {WEIGHTS_FILE} (whole or in shards) and no {KERAS_FILE}, but "
        f"{', '.join(there[:3]) or 'no weights'}{more}; tfmt reads no pickle, which can run code. Where PyTorch is "
        f'installed, AutoModel.from_pretrained("{commit.name}"{pinned}).save_pretrained("FOLDER") of transformers, and '
        "the same of AutoTokenizer, write a folder for --model=FOLDER"
    )


# ---- what is here --------------------------------------------------------------------------------------------------


def _fetch(commit: _Commit, files: list[str], revision: str, check: Callable[[Path], object]) -> Snapshot:
    """Downloads what is missing of a commit, and compares large files with the hub's digests."""
    missing = [file for file in files if not _cached(commit.name, file, commit.sha)]
    size = sum(commit.files[file].size or 0 for file in missing)
    if missing:
        _check_room(size)
    with _announced(commit, len(missing), size):
        folder = _take(commit, CONFIG_FILE, revision).parent
        check(folder)
        for file in files[1:]:
            _take(commit, file, revision)
    if not _COMMIT.fullmatch(revision):
        _store_ref(folder, revision or "main", commit.sha)
    return Snapshot(folder, commit.sha)


def _take(commit: _Commit, file: str, revision: str) -> Path:
    """A file of a commit, from the cache if it is the hub's, else downloaded, and once more if it came damaged."""
    for _ in range(2):
        path = _cached(commit.name, file, commit.sha) or _download(commit, file, revision)
        if _is_right(commit, file, path):
            return path
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    raise RunError(
        f"--model={_at(commit.name, revision)}: {file} came damaged twice (its sha256 is not the one that the hub "
        "names) and was deleted; see to the network and run the same command again"
    )


def _is_right(commit: _Commit, file: str, path: Path) -> bool:
    sha256 = commit.files[file].sha256
    return sha256 is None or file_digest(path) == sha256


def _whole(commit: _Commit) -> Snapshot | None:
    """A commit that is in the cache with all of its files, undamaged."""
    try:
        files = _choose(commit, "")
    except RequestError:
        return None
    paths = [_cached(commit.name, file, commit.sha) for file in files]
    if not all(path and _is_right(commit, file, path) for file, path in zip(files, paths, strict=True)):
        return None
    assert paths[0] is not None
    return Snapshot(paths[0].parent, commit.sha)


def _cached(name: str, file: str, revision: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    with _translated(name, revision):
        path = try_to_load_from_cache(name, file, revision=revision)
    return Path(path) if isinstance(path, str) else None


def _download(commit: _Commit, file: str, revision: str) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.file_download import repo_folder_name

    blobs = _cache() / repo_folder_name(repo_id=commit.name, repo_type="model") / "blobs"

    def bytes_here() -> int:
        sizes = 0
        for path in blobs.glob("*.incomplete"):
            with contextlib.suppress(OSError):
                sizes += path.stat().st_size
        return sizes

    def call() -> Path:
        return Path(hf_hub_download(commit.name, file, revision=commit.sha, endpoint=_endpoint(),
                                    etag_timeout=constants.HF_HUB_ETAG_TIMEOUT))  # fmt: skip

    with _translated(commit.name, revision), _plain_http():
        return _watched(call, STALL_SECONDS, "sent no byte of a file for", bytes_here)


def _store_ref(folder: Path, revision: str, commit: str) -> None:
    """Notes in the hub's cache which commit a branch or tag is, as its client does, once all of it is here."""
    path = folder.parents[1] / "refs" / revision
    with contextlib.suppress(OSError, RunError):  # a cache that is read alone
        if ".." not in Path(revision).parts and not (path.is_file() and path.read_text() == commit):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, commit.encode())


def _check_room(size: int) -> None:
    """Refuses a download that the disk has no room for, before it fills the disk."""
    place = _cache()
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if size > free:
        raise RunError(
            f"{_cache()}: the download takes {_tell_size(size)} and the disk has {_tell_size(free)} left; free some "
            "space, or set HF_HOME to a folder on another disk"
        )


@contextlib.contextmanager
def _announced(commit: _Commit, files: int, size: int) -> Iterator[None]:
    """Says what is downloaded, and when it has come, where no terminal shows the client's bars."""
    if not files or sys.stderr.isatty():
        yield
        return
    begun = time.monotonic()
    much = counted(files, "file") + (f", {_tell_size(size)}" if size else "")
    print(f"downloading {commit.name} at commit {commit.sha[:10]} from {_endpoint()} ({much})", file=sys.stderr)
    yield
    print(f"downloaded {commit.name} in {time.monotonic() - begun:.0f} s", file=sys.stderr)


def _tell_size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size / 1e3:,.1f} kB"


# ---- the hub's client ----------------------------------------------------------------------------------------------


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@contextlib.contextmanager
def _plain_http() -> Iterator[None]:
    """Keeps the client from its other protocol, whose waiting cannot be bounded, nor what it has so far be seen."""
    from huggingface_hub import constants

    before = getattr(constants, "HF_HUB_DISABLE_XET", True)
    constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


def _offline_error(name: str, revision: str, lacking: str) -> RequestError:
    return RequestError(
        f"--model={_at(name, revision)}: HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set, and the hub's cache "
        f"({_cache()}) does not hold {lacking}; unset it once to download it, or give a local folder"
    )


def _at(name: str, revision: str) -> str:
    return f"{name}@{revision}" if revision else name


def _watched(call: Callable[[], _T], seconds: float, lost: str, progress: Callable[[], int] = lambda: 0) -> _T:
    """What a call gives; ends, saying `lost`, when `progress` has stood still for so many seconds.

    The call is left to itself in a thread, as no socket's timeout bounds it: names are looked up without one, a
    server may send a byte now and then, and the client tries again by itself.
    """
    answers: queue.SimpleQueue[Callable[[], _T]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answer = call()
        except BaseException as error:
            answers.put(_raiser(error))
        else:
            answers.put(lambda: answer)

    threading.Thread(target=work, daemon=True).start()
    seen, since = progress(), time.monotonic()
    while True:
        with contextlib.suppress(queue.Empty):
            return answers.get(timeout=min(0.5, seconds))()
        now = progress()
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > seconds:
            raise _UnreachableError(f"{lost} {seconds:.0f} s")


def _raiser(error: BaseException) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


@contextlib.contextmanager
def _translated(name: str, revision: str) -> Iterator[None]:
    """Turns what the hub's client raises into one line of the right kind."""
    try:
        yield
    except (RequestError, RunError, _UnreachableError):
        raise
    except Exception as error:  # The client raises errors of several libraries.
        raise _translate(error, name, revision) from None


def _translate(error: BaseException, name: str, revision: str) -> Exception:
    import requests
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # its own text says only that the file is not in the cache either
    if isinstance(error, errors.HFValidationError):
        return RequestError(f"--model={name}: neither a folder nor a name that the hub could have")
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return _refusal(error, name, revision)
    if isinstance(error, errors.FileMetadataError | KeyError | TypeError | ValueError | AttributeError):
        return _UnreachableError("does not answer as the hub does (a login page of the network in between?)")
    if isinstance(error, requests.exceptions.ProxyError):
        return _UnreachableError("cannot be reached through the proxy that HTTPS_PROXY or HTTP_PROXY names")
    if isinstance(error, requests.exceptions.SSLError):
        return _UnreachableError("shows no certificate that can be trusted (a proxy or a login page in between?)")
    if isinstance(error, requests.exceptions.Timeout):
        return _UnreachableError("does not answer")
    if isinstance(error, requests.exceptions.RequestException):
        lost = "NameResolutionError" in str(error) or "Name or service" in str(error)
        return _UnreachableError("cannot be found: its name has no address" if lost else "cannot be reached")
    if isinstance(error, OSError) and error.errno is not None:
        return UnwritableError.of(Path(error.filename or _cache()), error)
    if isinstance(error, OSError):  # the client's word for a file of another size than the hub said
        return _UnreachableError("broke off a download")
    return RunError(f"--model={_at(name, revision)}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


def _refusal(error: Any, name: str, revision: str) -> Exception:
    """The error for an answer of the hub that is no success."""
    from huggingface_hub import errors

    at = f"--model={_at(name, revision)}"
    status, headers = error.response.status_code, error.response.headers
    said = headers.get("X-Error-Message") or ""
    cached = "; HF_HUB_OFFLINE=1 takes what its cache holds" if cached_model(name, revision) else ""
    if isinstance(error, errors.GatedRepoError):
        return RequestError(
            f"{at}: gated; accept its terms at {_endpoint()}/{name} and log in (`hf auth login`, or HF_TOKEN){cached}"
        )
    if isinstance(error, errors.DisabledRepoError):
        return RequestError(f"{at}: the hub has disabled this repository; take another model{cached}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return RequestError(
            f"{at}: no folder and no model of the hub ({_endpoint()}) has this name, or it is a private one; check "
            f"the name, or log in (`hf auth login`, or HF_TOKEN){cached}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return RequestError(f"--revision={revision}: {name} has no branch, tag or commit of this name{cached}")
    if isinstance(error, errors.EntryNotFoundError):
        return RequestError(f"{at}: the hub no longer has a file that it listed; run the same command again")
    if status in (401, 403) and (said or "X-Error-Code" in headers):
        return RequestError(
            f"{at}: the hub gives no right to it ({said or status}); see to the token (`hf auth login`, or "
            f"HF_TOKEN){cached}"
        )
    if status == 429:
        return _UnreachableError("wants fewer requests (429); wait, or log in (`hf auth login`, or HF_TOKEN)")
    if status >= 500:
        return _UnreachableError(f"is out of order ({status} {error.response.reason})")
    return _UnreachableError(f"answers {status} {error.response.reason} (a proxy or a login page in between?)")

"""Sending an exported model or adapter to the Hugging Face hub, by the hub's own client.

One commit has all files, so nobody sees a half of them. What the hub has already, from an earlier
commit or from a push that was interrupted, is not sent again.
"""

import json
import logging
import re
from pathlib import Path
from typing import NamedTuple

from ugc_jax import files
from ugc_jax.errors import UserError
from ugc_jax.hf import orbax_store
from ugc_jax.hf.adapter import WEIGHTS
from ugc_jax.hf.checkpoint import INDEX, SINGLE, Checkpoint
from ugc_jax.hf.config import load_config
from ugc_jax.hf.export import ADAPTER_CONFIG
from ugc_jax.hf.tensorfile import TensorFile
from ugc_jax.hf.trained import read_trained

logger = logging.getLogger(__name__)

MODEL, ADAPTER = "model", "adapter"
_REPO = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_BASE = "base_model_name_or_path"


class Upload(NamedTuple):
    """A file to send. name: in the repository. content: its path, or what is sent in its place."""

    name: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """Its bytes."""
        content = self.content
        return len(content) if isinstance(content, bytes) else content.stat().st_size


def find_export(path: str | Path, which: str = MODEL) -> Path:
    """Return the folder to send: of a run its `which`, "model" or "adapter"; else itself.

    Raises UserError if there is none, and for a run that has not come to its end.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"{path}: no such folder; name a run, an exported model or an adapter")
    if (folder / "checkpoints").is_dir():
        if not (folder / MODEL).is_dir():
            raise UserError(f"{path}: a run that has not come to its end; run it again to go on")
        if not (folder / which).is_dir():
            raise UserError(
                f"{path}: a run without an adapter; leave out --which, to send its model"
            )
        return folder / which
    if not any((folder / name).exists() for name in ("config.json", ADAPTER_CONFIG)):
        raise UserError(f"{path}: holds neither a run nor a model; name a folder with config.json")
    return folder


def check_complete(folder: Path):
    """Raise UserError for a model or adapter that nobody could load: naming the file and tensor."""
    if (folder / ADAPTER_CONFIG).exists():
        files.read_json(folder / ADAPTER_CONFIG, "export it again")
        TensorFile(folder / WEIGHTS)
        return
    if orbax_store.is_store(folder):
        raise UserError(
            f"{folder}: is an Orbax checkpoint, which other programs do not read; send what "
            "ugc-jax convert --to thinker makes of it"
        )
    Checkpoint(folder).check(load_config(folder))
    if not (folder / "tokenizer.json").exists():
        both = [name for name in ("vocab.json", "merges.txt") if not (folder / name).exists()]
        if both:
            raise UserError(f"{folder}: has no tokenizer.json; copy that of its base model there")
    read_trained(folder)


def uploads(folder: Path) -> list[Upload]:
    """Return the files of a folder to send, without hidden ones, in the order of their names.

    An adapter names its base by the hub's id, where that is known, and not by a local path.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            found.append(Upload(name.as_posix(), path))
    trained = read_trained(folder)
    base = ((trained.training if trained else {}).get("base") or {}).get("model")
    if base and (folder / ADAPTER_CONFIG).exists():
        content = files.read_json(folder / ADAPTER_CONFIG, "export it again")
        if content.get(_BASE) != base:
            named = json.dumps(content | {_BASE: base}, indent=2).encode()
            found = [
                Upload(one.name, named) if one.name == ADAPTER_CONFIG else one for one in found
            ]
    return found


def check_repo(repo: str):
    """Raise UserError for what is no name of a repository."""
    if not _REPO.fullmatch(repo):
        raise UserError(f"repo: {repo!r} is not a name on the hub; write it as USER/NAME")


def push(items: list[Upload], repo: str, private: bool, revision: str | None, message: str) -> str:
    """Make the repository if it is absent, and commit the files; returns the commit's address.

    private: of a new repository. revision: branch, which must exist; None: the default one. Weights
    of an earlier commit that these replace are removed there. Raises UserError without a token, and
    for what the hub refuses or the network breaks off.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    check_repo(repo)
    if get_token() is None:
        raise UserError(
            "the hub wants a token with write access; run hf auth login, or set HF_TOKEN"
        )
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        names = {item.name for item in items}
        there = api.list_repo_files(repo, revision=revision)
        stale = [name for name in there if name not in names and _is_weights(name)]
        for name in stale:
            logger.info("%s: %s is removed, as other weights replace it", repo, name)
        operations = [CommitOperationAdd(item.name, item.content) for item in items]
        operations += [CommitOperationDelete(name) for name in stale]
        commit = api.create_commit(
            repo, operations, commit_message=message, revision=revision, num_threads=4
        )
    except Exception as error:  # of an HTTP library, which depends on huggingface_hub's version
        raise UserError(f"{repo}: {_reason(error, repo)}") from error
    return str(commit.commit_url)


def _is_weights(name: str) -> bool:
    """Whether a file at the top of a repository has weights in the names of this package."""
    return re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", name) is not None or name in (
        SINGLE, INDEX,
    )  # fmt: skip


def _reason(error: Exception, repo: str) -> str:
    """What went wrong, with the remedy."""
    cause, code = error, None
    while cause is not None and code is None:  # the client wraps what an upload was answered
        code = getattr(getattr(cause, "response", None), "status_code", None)
        cause = cause.__cause__
    said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if code == 401:
        return "the hub refuses the token; run hf auth login with one that may write"
    if code == 403:
        owner = repo.partition("/")[0]
        return f"the token may not write to {owner}; use a token with write access, or another name"
    if code == 404:
        return "the hub has no such repository or branch; make it there, or leave --revision out"
    if code is not None:
        return f"the hub refuses it ({code}: {said:.160}); change what it names, then push again"
    again = "push again: what was sent stays there"
    return f"it cannot be sent ({said:.160}); check the network, then {again}"

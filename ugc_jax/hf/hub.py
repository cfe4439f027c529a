"""Locating a checkpoint: a local directory, or a repository on the Hugging Face hub."""

import re
from pathlib import Path

from ugc_jax.errors import UserError

_DESCRIPTION = ["*.json", "*.jinja", "*.txt", "README.md"]  # the last one names the licence
# Repositories that some mirrors of the hub show under another name.
_OTHER_NAMES = {"openinterx/UGC-VideoCaptioner": "Memories-ai/UGC-VideoCaptioner"}
_WEIGHTS = ["*.safetensors", "*.pt"]


def resolve_checkpoint(
    checkpoint: str | Path, revision: str | None = None, weights: bool = True
) -> Path:
    """Return the local directory of `checkpoint`: itself, or the download of a hub id "org/name".

    revision: branch, tag or commit on the hub; None is the default branch.
    weights: false downloads only config and tokenizer.
    Raises UserError if it is neither, or if the download fails; TypeError for other types.
    """
    if not isinstance(checkpoint, str | Path):
        raise TypeError(f"checkpoint: expected a directory or a hub id, got {checkpoint!r}")
    if not isinstance(revision, str | None):
        raise TypeError(f"revision: expected a name or None, got {revision!r}")
    if not str(checkpoint):
        raise UserError(
            "checkpoint is empty; give a directory or a hub id such as Qwen/Qwen2.5-Omni-3B"
        )
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{checkpoint}: is a file; give the checkpoint's directory")
    if not is_hub_id(str(checkpoint)):
        raise UserError(
            f"{checkpoint}: no such directory; give a checkpoint directory "
            "or a hub id such as Qwen/Qwen2.5-Omni-3B"
        )
    return _download(str(checkpoint), revision, _DESCRIPTION + _WEIGHTS * weights)


def is_hub_id(name: str) -> bool:
    """Return whether a name is that of a repository, "org/name", and of no folder here."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None and not Path(name).exists()


def _download(repo: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except errors.RevisionNotFoundError:
        problem = f"the hub has no revision {revision!r} of it"
    except errors.GatedRepoError:
        problem = "the hub requires you to accept its terms; do so there, then run hf auth login"
    except errors.RepositoryNotFoundError:
        problem = "neither a local directory nor a repository that you can read on the hub"
        if repo in _OTHER_NAMES:
            problem += f"; it may have another name there, {_OTHER_NAMES[repo]}"
    except Exception as error:  # of an HTTP library, which depends on huggingface_hub's version
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        problem = (
            f"no such directory, and its download from the hub failed ({reason}); "
            "check the network, or give a local directory"
        )
    raise UserError(f"{repo}: {problem}")

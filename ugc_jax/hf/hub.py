"""Where a checkpoint is: a local directory, or a repository on the Hugging Face hub."""

import re
from pathlib import Path

from ugc_jax.errors import UserError

_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.pt"]


def resolve_checkpoint(checkpoint: str | Path, revision: str | None = None) -> Path:
    """The local directory of `checkpoint`: a directory as it is, a hub id "org/name" after its download (cached).

    revision: branch, tag or commit on the hub; None is the default branch.
    Raises UserError if it is neither, or the hub cannot be reached or does not have it.
    """
    if not str(checkpoint):
        raise UserError(
            "checkpoint is empty; give a directory or a hub id such as Qwen/Qwen2.5-Omni-3B"
        )
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{checkpoint}: is a file; give the checkpoint's directory")
    if not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", str(checkpoint)):
        raise UserError(
            f"{checkpoint}: no such directory; give a checkpoint directory or a hub id such as Qwen/Qwen2.5-Omni-3B"
        )
    return _download(str(checkpoint), revision)


def _download(repo: str, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(
            huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=_PATTERNS)
        )
    except errors.RevisionNotFoundError:
        raise UserError(f"{repo}: the hub has no revision {revision!r} of it") from None
    except errors.GatedRepoError:
        raise UserError(
            f"{repo}: the hub wants you to accept its terms; do so there, then run `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{repo}: neither a local directory nor a repository that you can read on the hub"
        ) from None
    except (
        Exception
    ) as error:  # the HTTP library below huggingface_hub differs between its versions
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{repo}: no such directory, and its download from the hub failed ({reason}); "
            "check the network, or give a local directory"
        ) from None

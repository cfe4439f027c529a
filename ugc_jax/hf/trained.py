"""What a model was shown in training, stored beside its weights; and which weights they are.

captioner.json holds the clip settings, with system prompt and question, of the training data, or of
a published captioner. They are the defaults wherever the model is used. transformers ignores the
file.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import NamedTuple

from ugc_jax import __version__, files
from ugc_jax.errors import UserError
from ugc_jax.hf.tensorfile import TensorFile
from ugc_jax.media.presets import ClipSettings, resolve
from ugc_jax.settings import from_options

TRAINED = "captioner.json"
_TEXTS = (".json", ".txt", ".jinja", ".md")
_SAMPLES, _SAMPLE = 64, 1 << 10  # samples that a digest reads of a file, and their bytes


class Trained(NamedTuple):
    """What a checkpoint knows of its use.

    clip: the resolved settings of the clips, with system prompt and question. sampling: fields of
    SamplingConfig that belong to it, of a published captioner; {} if the model was trained here.
    training: how it came about, for the model card (`train.lineage.lineage`); {} if unknown.
    """

    clip: ClipSettings
    sampling: dict[str, float] = {}
    training: dict = {}


def write_trained(folder: Path, trained: Trained | None):
    """Write captioner.json; None writes nothing."""
    if trained is None:
        return
    content = {"clip": dataclasses.asdict(trained.clip), "sampling": trained.sampling}
    if trained.training:
        content["training"] = trained.training
    files.write_json(Path(folder) / TRAINED, {"ugc_jax": __version__} | content, indent=2)


def read_trained(folder: Path) -> Trained | None:
    """Return what is beside the weights of a checkpoint; None if there is nothing.

    Raises UserError for a file that holds something else.
    """
    path = Path(folder) / TRAINED
    if not path.exists():
        return None
    remedy = "copy the file again, or remove it to use presets"
    content = files.read_json(path, remedy)
    try:
        clip = from_options(ClipSettings, content["clip"])
        sampling, training = (dict(content.get(name, {})) for name in ("sampling", "training"))
        return Trained(resolve(clip), sampling, training)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f'{path}: has no valid "clip" ({error}); {remedy}') from None


def weights_digest(folder: Path) -> str:
    """Return 16 hexadecimal digits that tell the weights of two checkpoints apart, in a moment.

    Of each file but text files it takes the name, the size and samples: of safetensors one of each
    tensor, of others evenly spaced ones. Raises UserError as `TensorFile`.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        relative = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in relative.parts)
        if is_hidden or path.suffix in _TEXTS or not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{relative} {size} ".encode())
        if path.suffix == ".safetensors":
            headers = TensorFile(path).headers.values()
            places = [header.start + max(0, header.nbytes - _SAMPLE) // 2 for header in headers]
        else:
            places = [
                max(0, size - _SAMPLE) * number // (_SAMPLES - 1) for number in range(_SAMPLES)
            ]
        with path.open("rb") as file:
            for place in places:
                file.seek(place)
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:16]

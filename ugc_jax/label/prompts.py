"""The texts of the questions to a teacher, from files that a user may replace."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from ugc_jax import files
from ugc_jax.data import annotation
from ugc_jax.data.annotation import Picture, Sound
from ugc_jax.errors import UserError

FOLDER = Path(__file__).with_name("prompts")
# File -> the places that its text must have.
_PLACES = {"sound": (), "picture": (), "both": ("{drafts}",), "again": ("{reason}",)}


class Prompts(NamedTuple):
    """texts: by stage, and "again". hash: 16 hexadecimal digits of all texts."""

    texts: dict[str, str]
    hash: str

    def question(
        self,
        stage: str,
        sound: Sound | None = None,
        picture: Picture | None = None,
        reason: str | None = None,
    ) -> str:
        """Return the text of a question.

        sound, picture: the drafts, for the stage "both"; None for a clip without that part.
        reason: why an earlier answer was not accepted.
        """
        text = self.texts[stage]
        if stage == "both":
            text = text.replace("{drafts}", f"{_draft('Heard', sound)}\n{_draft('Seen', picture)}")
        if reason is not None:
            text = f"{text}\n\n{self.texts['again'].replace('{reason}', reason)}"
        return text


def load(folder: str | None = None) -> Prompts:
    """Read sound.txt, picture.txt, both.txt and again.txt from a folder; None: ours.

    A file that the folder does not have is ours. Raises UserError for one that cannot be read, is
    empty or lacks its place, and for a folder without any of them.
    """
    texts, own = {}, 0
    for name, places in _PLACES.items():
        path = FOLDER / f"{name}.txt"
        if folder is not None and (given := Path(folder, path.name)).exists():
            path, own = given, own + 1
        text = files.read_text(path, "give a folder with the texts of the prompts").strip()
        for place in places:
            if text.count(place) != 1:
                raise UserError(f"{path}: must have {place} once; put it where this text belongs")
        if not text:
            raise UserError(f"{path}: is empty; write the question, or delete the file")
        texts[name] = text
    if folder is not None and not own:
        names = ", ".join(f"{name}.txt" for name in _PLACES)
        raise UserError(f"prompts: {folder} has none of {names}; give a folder that has")
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
    return Prompts(texts, digest[:16])


def _draft(name: str, stage: Sound | Picture | None) -> str:
    if stage is None:
        return f"{name}: nothing; the video has no {'sound' if name == 'Heard' else 'picture'}."
    return f"{name}: {json.dumps(annotation.to_json(stage), ensure_ascii=False)}"

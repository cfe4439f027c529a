"""Whether sound and picture support the words of a caption, by a checkpoint of ours.

    clip, caption -> Captioner.explain (generate/evidence.py) -> Support, kept in a file

It says what the checkpoint rests on (docs/evidence.md): a second witness, which hears and sees the
clip, beside the texts that verify.py compares.
"""

import functools
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

from ugc_jax.generate.evidence import Explanation
from ugc_jax.judge.answers import Answers
from ugc_jax.label.gathering import Gathering
from ugc_jax.label.material import Material, write_part


class Engine(Protocol):
    """What explains, such as a `generate.captioner.Captioner`."""

    def explain(self, videos: Sequence[str], captions: Sequence[str], **options) -> list:
        """Return an Explanation of each; see `Captioner.explain`."""


class Support(NamedTuple):
    """unsupported: share of the content words that nothing supports. words: these."""

    unsupported: float
    words: tuple[str, ...]


class Unexplained(Exception):
    """A caption has no evidence; the message is one line."""


class Supporter:
    """Explains captions; the same caption of a clip only once, also over several runs."""

    def __init__(
        self,
        load: Callable[[], Engine],
        version: str,
        cache: Path,
        clip: Mapping[str, object] = MappingProxyType({}),
        engine: Mapping[str, object] = MappingProxyType({}),
    ):
        """load: called once, before the first caption. version: of the weights. cache: JSON Lines
        file of what was found. clip, engine: options of `Captioner.explain`, of which those of the
        clip decide what is found.
        """
        self.identity = [version, {name: repr(clip[name]) for name in sorted(clip)}]
        self._load, self._options = functools.cache(load), dict(clip) | dict(engine)
        self._cache = Answers(cache)
        self._gathering = Gathering(self._explain)

    async def of(self, clip: Material, caption: str) -> Support:
        """Return the support of a caption. Raises Unexplained."""
        key = self._key(clip, caption)
        if (found := self._cache.get(key)) is None:
            told: Explanation = await self._gathering.ask((clip, caption))
            words = [word.text for word in told.unsupported]
            found = {"unsupported": told.shares.get("unsupported", 0.0), "words": words}
            self._cache.put(key, found)
        return Support(round(found["unsupported"], 4), tuple(found["words"]))

    async def close(self):
        """Explain nothing more."""
        await self._gathering.close()
        self._cache.close()

    def _key(self, clip: Material, caption: str) -> str:
        text = json.dumps([self.identity, clip.digest, caption])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _explain(self, batch: Sequence[tuple[Material, str]]) -> list[Explanation | Unexplained]:
        """Explain captions of clips, in a thread."""
        with tempfile.TemporaryDirectory(prefix="ugc-jax-label-") as folder:
            paths = [str(write_part(Path(folder, clip.digest), clip.both)) for clip, _ in batch]
            texts = [caption for _, caption in batch]
            found = self._load().explain(paths, texts, **self._options)
        return [
            one if one.error is None else Unexplained(one.error.rpartition(f"{path}: ")[2])
            for path, one in zip(paths, found, strict=True)
        ]

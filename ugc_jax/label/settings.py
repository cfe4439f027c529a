"""The settings of a labelling run: teacher, requests, verification. Imports no client."""

import dataclasses
from typing import Literal

from ugc_jax.errors import UserError
from ugc_jax.settings import check_minimum

KEYS = {"gemini": "GEMINI_API_KEY", "openai": "OPENAI_API_KEY"}


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """The model that captions."""

    # gemini (Google's API), openai (any server that speaks OpenAI's chat completions), local (our
    # own engine)
    kind: Literal["gemini", "openai", "local"] | None = None
    # its name on the server, or the checkpoint of local; there is no default, since providers end
    # models and answer with successors
    model: str | None = None
    # the server, e.g. http://localhost:8000/v1; none: the provider's own. openai needs one, unless
    # it is OpenAI's
    base_url: str | None = None
    # environment variable with the key; none: GEMINI_API_KEY or OPENAI_API_KEY. A server of your
    # own needs none
    key: str | None = None
    temperature: float = 0.2  # of the answers; a second sample needs more than 0
    max_tokens: int = 8192  # of an answer, thinking included
    # ask the server for JSON by its schema; false for a server that cannot (the prompt asks, too)
    schema: bool = True
    # gemini: a larger part (in MB) is uploaded and deleted after its answer, a smaller one is sent
    # with the question (requests have at most 20 MB, and parts grow by a third)
    inline_mb: float = 14.0
    # openai: how the picture is sent, as stills (image_url) or as a video (video_url, as vLLM takes
    # it); sound is input_audio
    picture: Literal["stills", "video_url"] = "stills"
    stills: int = 16  # openai: stills of a clip, evenly spaced
    side: int = 768  # openai: pixels of a still's longer side, at most
    # the price table: price per million tokens of a question's text and picture
    price_in: float = 0.0
    price_sound: float | None = None  # the same of its sound; none: as price_in
    price_out: float = 0.0  # per million tokens of answers, thinking included
    # tokens of a second of picture, for what is estimated before an answer tells
    picture_tokens: float = 258.0
    sound_tokens: float = 32.0  # the same of a second of sound
    answer_tokens: int = 600  # the same of an answer

    def __post_init__(self):
        check_minimum(self, temperature=0, max_tokens=1, stills=1, side=28, inline_mb=0)
        check_minimum(self, price_in=0, price_sound=0, price_out=0)
        check_minimum(self, picture_tokens=0, sound_tokens=0, answer_tokens=0)
        url = self.base_url
        if url is not None and not url.startswith(("http://", "https://")):
            raise UserError(f"base_url is {url!r}; give an address such as http://localhost:8000")
        if self.kind is not None and not self.model:
            raise UserError(f"model is missing: give the name of the {self.kind} model to ask")
        if self.kind is None and self.model is not None:
            raise UserError("kind is missing: gemini, openai or local")

    @property
    def name(self) -> str:
        """Kind and model, as messages name the teacher."""
        return f"{self.kind} {self.model}"

    @property
    def key_name(self) -> str:
        """The environment variable with the key."""
        return self.key or KEYS[self.kind]

    def cost(self, tokens_in: float, sound: float, tokens_out: float) -> float:
        """Return the cost of tokens; `sound` of `tokens_in` are of sound."""
        price = self.price_in if self.price_sound is None else self.price_sound
        total = (tokens_in - sound) * self.price_in + sound * price + tokens_out * self.price_out
        return total / 1e6

    @property
    def identity(self) -> dict:
        """What decides an answer, beside the prompts."""
        names = ("kind", "model", "temperature", "max_tokens", "schema")
        if self.kind == "openai":
            names += ("picture", "stills", "side")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class AskingConfig:
    """Requests to the teachers."""

    concurrency: int = 8  # clips, and questions, that are under way at a time
    requests_per_minute: float | None = None  # at most; none: no limit
    tokens_per_minute: float | None = None  # at most, of questions and answers; none: no limit
    timeout: float = 180.0  # seconds that the answer of a server may take; local has no limit
    retries: int = 6  # times that a question is asked again after an error of server or connection
    # times that it is asked again after an answer of no use: cut off, blocked, not the form asked
    unusable: int = 2
    backoff: float = 1.0  # seconds before the first retry; doubles each time, up to 60
    # minutes that a server which cannot be reached, or has no room (429), is waited for
    wait: float = 15.0

    def __post_init__(self):
        check_minimum(self, concurrency=1, retries=0, unusable=0, backoff=0, wait=0)
        for name in ("requests_per_minute", "tokens_per_minute", "timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} is {value}; give a number above 0")


@dataclasses.dataclass(frozen=True)
class VerifyConfig:
    """What a caption must hold; what fails is asked once more, then rejected with the reason."""

    language: str | None = "en"  # of the captions, as ISO 639-1; none: any
    min_words: int = 40  # of a caption, at least; a character of Chinese or Thai is a word
    max_words: int = 600  # of a caption, at most
    # least share of different runs of four words: 1 has no repetition
    distinct: float = 0.8
    # false: single passes and the caption may say different things
    contradictions: bool = True
    # a second caption, with which the first must agree: of the same teacher, or of the section
    # second
    compare_with: Literal["none", "sample", "teacher"] = "none"
    # least share of the statements of the caption that the second one has, where a judge counts
    # them (judge.model); by rules no statement may be contradicted
    agreement: float = 0.6
    # checkpoint that says which words of a caption sound and picture support (docs/evidence.md);
    # none: not checked
    explain_with: str | None = None
    # most share of the content words that nothing supports, with explain_with
    unsupported: float = 0.2

    def __post_init__(self):
        least = dict(min_words=1, max_words=self.min_words, distinct=0, agreement=0, unsupported=0)
        check_minimum(self, **least)
        for name in ("distinct", "agreement", "unsupported"):
            if getattr(self, name) > 1:
                raise UserError(f"{name} is {getattr(self, name)}; use a share from 0 to 1")

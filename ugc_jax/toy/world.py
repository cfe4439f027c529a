"""A small world of clips whose captions can be checked word for word.

    split, number -> make_clip -> Scene (drawn and played by synthetic.py), attributes, caption
    caption -> parse_caption -> attributes -> check, attribute_f1

All that a caption says can be seen or heard in its clip, and only there. The values of an attribute
are about equally frequent in training. Training has none of the combinations of `HELD_OUT`; a test
clip has one of each kind (of those with text only if it has text).
"""

import dataclasses
import functools
import itertools
import re
from pathlib import Path

import numpy as np

from ugc_jax.errors import UserError
from ugc_jax.models.qwen2_5_omni.config import SAMPLE_RATE
from ugc_jax.settings import check_minimum
from ugc_jax.toy import synthetic
from ugc_jax.toy.synthetic import BACKGROUNDS, COLOURS, FORMS, Scene

SPLITS = ("train", "test")
QUESTION = "Describe the video and its sound."
NO_TEXT = "none"
WORDS = (
    "MOON", "FISH", "TREE", "JUMP", "GOLD", "WAVE", "BIRD", "LAKE", "KING", "ROCK", "SNOW", "PLAY",
)  # fmt: skip
SOUNDS = {"beeps": synthetic.Beeps, "music": synthetic.Music, "noise": synthetic.Noise}
PITCHES = {"low": 200.0, "middle": 700.0, "high": 2500.0}  # hertz
RHYTHMS = {"slow": 2.5, "fast": 25 / 3}  # a second: periods of 10 and 3 audio tokens
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
# When shape and sound begin, in lengths of the clip. Ranges are at least 0.17 s of 2 s apart, and
# frames at 2 per second (at 0, 0.625, 1.25 and 1.875 s) tell the shape's two apart.
SHAPE_BEGINS = {"early": (0.15, 0.25), "late": (0.475, 0.55)}
SOUND_BEGINS = {"early": (0.0, 0.05), "middle": (0.34, 0.39), "late": (0.65, 0.7)}
# The first of the two -> when shape and sound begin. The sound's middle time (three clips in five)
# says nothing about the order, its other two determine it; the shape's time alone is right in three
# clips of five. So three of five need both, and each alone says enough to be learned.
ORDERS = {
    "shape": (*[("early", "middle")] * 3, *[("late", "late")] * 2),
    "sound": (*[("late", "middle")] * 3, *[("early", "early")] * 2),
}
TILES = 8  # of 14 pixels: a patch of the vision encoder is a tile
ROOM = (5, 3)  # tiles by which a shape of 3 tiles can move above the text, (x, y)
TURN = (0.4, 0.55)  # when the background changes, in lengths of the clip

VALUES = {
    "shape": FORMS,
    "colour": tuple(COLOURS),
    "motion": tuple(MOTIONS),
    "background": tuple(BACKGROUNDS),
    "change": tuple(BACKGROUNDS),  # the background at the end, which may be the same
    "sound": tuple(SOUNDS),
    "pitch": tuple(PITCHES),
    "rhythm": tuple(RHYTHMS),
    "text": (*WORDS, NO_TEXT),
    "first": ("shape", "sound"),
}
GROUPS = {
    "visual": ("shape", "colour", "motion", "background", "change"),
    "audio": ("sound", "pitch", "rhythm"),
    "text": ("text",),
    "cross": ("first",),
}


# ---- combinations --------------------------------------------------------------------------------

# Names of attributes -> their combinations in the test split. Each value has an equal share of
# them, and they are few: in training the words so far hardly predict the next attribute, which has
# to be seen or heard.
HELD_OUT = {
    ("shape", "colour", "motion"): {
        (shape, VALUES["colour"][-(2 * i + 3 * j) % len(COLOURS)], motion)
        for i, shape in enumerate(FORMS)
        for j, motion in enumerate(MOTIONS)
    },
    ("text", "background"): {
        (word, VALUES["background"][i % len(BACKGROUNDS)]) for i, word in enumerate(WORDS)
    },
    # A sound with what the background becomes. Were sounds held out by themselves, the rhythm would
    # follow from sound and pitch in most of the training clips, and models learn it from those.
    ("sound", "pitch", "rhythm", "change"): {
        (sound, VALUES["pitch"][(i + j) % len(PITCHES)], rhythm, change)
        for i, sound in enumerate(SOUNDS)
        for j, rhythm in enumerate(RHYTHMS)
        for change in VALUES["change"][(i + j) % 2 :: 2]
    },
}


@functools.cache
def _decks(split: str) -> dict[tuple[str, ...], list[tuple]]:
    """Names -> the combinations from which clips are dealt, each as often as it is listed."""

    def allowed(*names: str) -> list[tuple]:
        table = itertools.product(*(VALUES[name] for name in names))
        return [row for row in table if (row in HELD_OUT[names]) == (split == "test")]

    words = [row for row in allowed("text", "background") if row[0] != NO_TEXT]
    none = [(NO_TEXT, background) for background in BACKGROUNDS]  # never held out
    return {
        ("shape", "colour", "motion"): allowed("shape", "colour", "motion"),
        # no text is as frequent as each word
        ("text", "background"): words * len(none) + none * (len(words) // len(WORDS)),
        ("sound", "pitch", "rhythm", "change"): allowed("sound", "pitch", "rhythm", "change"),
        # independent of all else: only the times tell the order
        ("first", "shape begins", "sound begins"): [
            (first, *begins) for first, pairs in ORDERS.items() for begins in pairs
        ],
        ("phrasing",): [(number,) for number in range(len(PHRASINGS))],
    }


def _deal(split: str, number: int, seed: int) -> dict:
    """Name -> value, for clip `number`. A deck is dealt to its end, then shuffled again."""
    hand = {}
    for place, (names, deck) in enumerate(_decks(split).items()):
        game, card = divmod(number, len(deck))
        order = _random(split, seed, place, game).permutation(len(deck))
        hand |= zip(names, deck[order[card]], strict=True)
    return hand


def _random(split: str, seed: int, *what: int) -> np.random.Generator:
    return np.random.default_rng((seed, SPLITS.index(split), *what))


# ---- clips ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class WorldSettings:
    """Settings of the clips."""

    seed: int = 0  # equal settings give equal files
    seconds: float = 2.0  # length of a clip
    fps: float = 8.0  # frames per second
    size: int = 112  # pixels of each side, an even number
    mute: bool = False  # the same clips with a sound track that is silent
    blank: bool = False  # the same clips with a picture that is all grey
    incomplete: float = 0.0  # share of the training captions that leave out how the background ends

    def __post_init__(self):
        """Raises UserError for a setting out of range."""
        check_minimum(self, seed=0, seconds=1, fps=1, size=28)
        if self.size % 2:
            raise UserError(f"size is {self.size}; use an even number")
        if not 0 <= self.incomplete <= 1:
            raise UserError(f"incomplete is {self.incomplete}; use a share from 0 to 1")


def make_clip(
    split: str, number: int, seed: int = 0, seconds: float = 2.0, incomplete: float = 0.0
) -> tuple[Scene, dict[str, str], str]:
    """Clip `number` of a split: its scene, its attributes (of VALUES) and its caption.

    They depend on the arguments only. seconds: length of the clip. incomplete: share of the
    training captions that leave out how the background ends.
    """
    hand = _deal(split, number, seed)
    attributes = {name: hand[name] for name in VALUES}
    scene = _scene(hand, _random(split, seed, len(_decks(split)), number), seconds)
    said = dict(attributes)
    if (
        split == "train"
        and _random(split, seed, len(_decks(split)) + 1, number).random() < incomplete
    ):
        del said["change"]
    return scene, attributes, write_caption(said, hand["phrasing"])


def begins(split: str, number: int, seed: int = 0) -> dict[str, str]:
    """When shape and sound of clip `number` begin: keys of SHAPE_BEGINS and SOUND_BEGINS."""
    hand = _deal(split, number, seed)
    return {name: hand[f"{name} begins"] for name in ("shape", "sound")}


def _scene(hand: dict, random: np.random.Generator, seconds: float) -> Scene:
    """The scene of a hand; the rest (place, size, exact times and pitch) is random."""
    appears = random.uniform(*SHAPE_BEGINS[hand["shape begins"]]) * seconds
    # The shape moves along one axis, from the edge behind it until its plough is at the other edge.
    towards, room = np.array(MOTIONS[hand["motion"]]), np.array(ROOM)
    start = np.where(towards, towards < 0, random.integers(0, room + 1) / room)
    velocity = towards * (1 - 1 / room) / (seconds - appears)
    shape = synthetic.Shape(
        form=hand["shape"],
        colour=hand["colour"],
        size=3 / TILES,
        start=tuple(start.tolist()),
        velocity=tuple(velocity.tolist()),
        appears=appears,
        plough=tuple(towards.tolist()),
        marked=True,
    )
    sound = SOUNDS[hand["sound"]](
        pitch=PITCHES[hand["pitch"]] * random.uniform(0.94, 1.06),
        per_second=RHYTHMS[hand["rhythm"]],
        hiss=0.005,
        tick=0.3,
        begins=round(random.uniform(*SOUND_BEGINS[hand["sound begins"]]) * seconds * 25) / 25,
    )
    changes = hand["change"] != hand["background"]
    return Scene(
        background=hand["background"],
        shapes=(shape,),
        sound=sound,
        seed=int(random.integers(2**31)),
        turns=(hand["change"], random.uniform(*TURN) * seconds) if changes else None,
        band=True,
        text="" if hand["text"] == NO_TEXT else hand["text"],
        tiles=TILES,
    )


def write_example(split: str, number: int, settings: WorldSettings, folder: Path) -> dict:
    """Write clip `number` of a split below `folder` unless it exists; returns its manifest row.

    The row, {"videos": ["train/000000.mp4"], "messages": [question, caption], "attributes": {...},
    "begins": {"shape": "early", "sound": "middle"}}, has the path relative to `folder`. Raises
    UserError if the clip cannot be written.
    """
    scene, attributes, caption = make_clip(
        split, number, settings.seed, settings.seconds, settings.incomplete
    )
    if settings.mute:
        scene = dataclasses.replace(scene, sound=None)
    if settings.blank:
        scene = Scene("grey", (), scene.sound, scene.seed)
    name = f"{split}/{number:06d}.mp4"
    path = folder / name
    if not path.exists():
        unfinished = path.with_suffix(".part.mp4")
        try:
            synthetic.write_clip(
                unfinished,
                scene,
                seconds=settings.seconds,
                fps=settings.fps,
                size=(settings.size, settings.size),
                sound_seconds=whole_blocks(settings.seconds),
                rate=SAMPLE_RATE,
            )
            unfinished.replace(path)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror}); make room or choose another output"
            ) from None
    messages = [
        {"role": "user", "content": f"<video>{QUESTION}"},
        {"role": "assistant", "content": caption},
    ]
    row = {"videos": [name], "messages": messages, "attributes": attributes}
    return row | {"begins": begins(split, number, settings.seed)}


def whole_blocks(seconds: float) -> float:
    """The longest sound in `seconds` that fills whole AAC blocks; an encoder pads the last one."""
    block = synthetic.AAC_BLOCK / SAMPLE_RATE
    return int(seconds / block) * block


# ---- captions ------------------------------------------------------------------------------------

# Each: the caption, {text} for a clip with text, {text} for one without.
# {thing}: red circle. {noise}: slow high beeps. {Pair}: both, in their order.
# {heard}: whether the sound comes "before" or "after" the shape. When one phrasing said it of the
# shape, so that the words meant the opposite, SFT learned the order in one seed of three.
PHRASINGS = (
    (
        "A {thing} moves {motion} over a {background} background{ends}. {text} "
        "{Noise} can be heard {heard} the {shape} appears.",
        "The word {word} is shown.",
        "No word is shown.",
    ),
    (
        "The background is {background}{and_ends}. A {thing} moves {motion}. {text} There is "
        "{noise}, which begins {heard} the {shape} appears.",
        "The text reads {word}.",
        "There is no text.",
    ),
    (
        "{Pair}. The {shape} moves {motion} over a {background} background{ends}. {text}",
        "The word on the screen is {word}.",
        "No word is on the screen.",
    ),
    (
        "Over a {background} background{ends}, a {thing} moves {motion}. {text} The "
        "sound is {noise}, heard {heard} the {shape} appears.",
        "One can read {word}.",
        "One can read nothing.",
    ),
)


def write_caption(attributes: dict[str, str], phrasing: int) -> str:
    """The caption that states all attributes, in one of the PHRASINGS.

    "change" may be left out.
    """
    order, text, no_text = PHRASINGS[phrasing]
    thing = "{colour} {shape}".format(**attributes)
    noise = "{rhythm} {pitch} {sound}".format(**attributes)
    word, end = attributes["text"], attributes.get("change")
    if attributes["first"] == "shape":
        heard, pair = "after", f"a {thing}, then {noise}"
    else:
        heard, pair = "before", f"{noise}, then a {thing}"
    return order.format(
        thing=thing,
        noise=noise,
        Noise=noise.capitalize(),
        Pair=pair.capitalize(),
        shape=attributes["shape"],
        motion=attributes["motion"],
        background=attributes["background"],
        ends="" if end is None else f" that ends {end}",
        and_ends="" if end is None else f" and ends {end}",
        text=no_text if word == NO_TEXT else text.format(word=word),
        heard=heard,
    )


def corpus_sentences() -> list[str]:
    """The question, and captions with every word of the world, to train a tokenizer."""
    lines = [QUESTION]
    for number in range(max(map(len, VALUES.values()))):
        row = {name: values[number % len(values)] for name, values in VALUES.items()}
        for first, phrasing in itertools.product(VALUES["first"], range(len(PHRASINGS))):
            lines.append(write_caption(row | {"first": first}, phrasing))
    return lines


def _any(name: str) -> str:
    return "|".join(VALUES[name])


# Attribute -> pattern -> the value that it stands for; None: that of the pattern's group.
_PATTERNS: dict[str, dict[str, str | None]] = {
    "shape": {rf"\b({_any('shape')})\b": None},
    "colour": {rf"\b({_any('colour')})\b": None},
    "motion": {rf"\bmoves ({_any('motion')})\b": None},
    "background": {
        rf"\b({_any('background')}) background\b": None,
        rf"\bbackground is ({_any('background')})\b": None,
    },
    "change": {rf"\bends ({_any('background')})\b": None},
    "sound": {rf"\b({_any('sound')})\b": None},
    "pitch": {rf"\b({_any('pitch')})\b": None},
    "rhythm": {rf"\b({_any('rhythm')})\b": None},
    "text": {
        r"\b([A-Z]{2,})\b": None,
        r"\b([Nn]o (word|text)|read nothing)\b": NO_TEXT,
    },
    "first": {
        r"\bheard after\b": "shape",
        r"\bheard before\b": "sound",
        r"\bbegins after\b": "shape",
        r"\bbegins before\b": "sound",
        r"\bappears before\b": "shape",
        r"\bappears after\b": "sound",
        rf"\b({_any('shape')}), then\b": "shape",
        rf"\b({_any('sound')}), then\b": "sound",
    },
}


def parse_caption(caption: str) -> dict[str, str | None]:
    """Attribute -> the value that a caption states, in any phrasing.

    None where it states none, an unknown one, or two different ones.
    """
    lower = caption.lower()
    found = {}
    for name, patterns in _PATTERNS.items():
        values = {
            value or match[1]
            for pattern, value in patterns.items()
            for match in re.finditer(pattern, caption if name == "text" else lower)
        }
        value = values.pop() if len(values) == 1 else None
        found[name] = value if value in VALUES[name] else None
    return found


def check(caption: str, attributes: dict[str, str]) -> dict[str, bool]:
    """Attribute -> True if the caption states it and is right."""
    stated = parse_caption(caption)
    return {name: stated[name] == attributes[name] for name in VALUES}


def attribute_f1(caption: str, attributes: dict[str, str]) -> float:
    """F1 of the attributes that the caption states: 2 * right / (stated + all), in 0..1."""
    stated = parse_caption(caption)
    right = sum(stated[name] == attributes[name] for name in VALUES)
    return 2 * right / (sum(value is not None for value in stated.values()) + len(VALUES))

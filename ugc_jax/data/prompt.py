"""Messages -> pieces -> tokens, positions and feature rows: a prompt from its text to its `Layout`.

    messages + media facts -> pieces() -> [Text, Medium, Text] -> layout() -> Layout

`pieces` applies the chat template (spec 5.1). Text between two media is tokenized in one call,
exactly as the reference tokenizes the rendered template. There are two intended differences. The
text of an assistant is tokenized separately from the "assistant\n" before it, so that training sees
the ids that generation produces after its prompt (the reference merges that newline with one at the
beginning of the answer). The spelling of a special token inside a message ("<|VIDEO|>",
"<|im_end|>") stays plain text, where the reference would insert the token. So no question, subtitle
or caption can add a media token without features, or end its turn.

`layout` expands each medium to its tokens, and gives every token its TMRoPE position (spec 3.2,
3.3) and the encoder's output row that it takes. `chunk_slices` cuts both a video and its sound into
two-second chunks, and one permutation orders tokens, positions and feature rows alike, so that they
always agree. In the reference the processor cuts by float64 times and the model by truncated
float32 positions; for some rates (1.98, 10.25, 11.75 fps; spec 7.4) the two differ by a token. Here
the model's cut is used for both: at every rate, the reference model computes exactly these
positions for these tokens.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

from ugc_jax.errors import UserError
from ugc_jax.models.qwen2_5_omni.config import OmniConfig, TokenIds, VisionConfig
from ugc_jax.models.qwen2_5_omni.tokens import DEFAULT_SYSTEM, SPELLINGS

ROLES = ("system", "user", "assistant")
# The kinds of medium, and the keys that give the kind of a part without a "type", in the order in
# which the template tests them.
KINDS = {"image": ("image", "image_url"), "audio": ("audio", "audio_url"), "video": ("video",)}
TEXT, VISION, AUDIO = 0, 1, 2  # values of `Layout.source`

_COUNT_BATCH = 1024  # texts that are counted at a time: bounds memory


class Text(NamedTuple):
    """Tokenized text, chat markers included.

    ids: T token ids. target: whether the model is trained on them.
    """

    ids: list[int]
    target: bool = False


class Medium(NamedTuple):
    """The kind and the size of a medium, all that the layout of a prompt needs of it.

    kind: "image", "audio" (sound alone) or "video". grid: (t, h, w) in patches; zeros for sound
    alone. seconds_per_grid: duration of a temporal grid (two frames); 0 unless video.
    mel_frames: valid log-mel frames (10 ms each) of the sound; None without sound.
    """

    kind: str
    grid: tuple[int, int, int] = (0, 0, 0)
    seconds_per_grid: float = 0.0
    mel_frames: int | None = None


Piece = Text | Medium


class Layout(NamedTuple):
    """T tokens of a prompt, or of a part of one; fields as those of `example.Example`.

    next_position: where the following part starts. Positions of a part count from 0.
    """

    tokens: np.ndarray  # i32[T]
    positions: np.ndarray  # i32[3, T]
    next_position: int
    source: np.ndarray  # i8[T]
    row: np.ndarray  # i32[T, 2]
    target: np.ndarray  # bool[T]


# ---- messages -> pieces --------------------------------------------------------------------------


def _byte_letters() -> dict[str, int]:
    """The letter that byte-level BPE writes for each byte: printable ones stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + number): byte for number, byte in enumerate(others)}


_BYTES = _byte_letters()


class ChatTokenizer:
    """A checkpoint's tokenizer, in which message text can never become a special token."""

    def __init__(
        self, backend: tokenizers.Tokenizer, tokens: TokenIds, source: str = "tokenizer.json"
    ):
        """Wrap a byte-level BPE with Qwen2.5-Omni's special tokens.

        source: the backend's name in messages. Raises UserError if its ids contradict those of
        config.json (`tokens`).
        """
        for field, spelling in SPELLINGS.items():
            found, expected = backend.token_to_id(spelling), getattr(tokens, field)
            if found != expected:
                raise UserError(
                    f"{source}: {spelling} has id {found}, but {field} in config.json is "
                    f"{expected}; take both files from the same checkpoint"
                )
        backend.encode_special_tokens = True  # as letters: they are not recognised in text
        self._backend = backend
        self.turn_start, self.turn_end = tokens.bos_token_id, tokens.eos_token_id

    def encode(self, text: str) -> list[int]:
        """Return the token ids of plain text; spellings of special tokens are plain text, too."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def normalized(self, text: str) -> str:
        """Return the form of a text that its token ids write, such as é for e and an accent."""
        normalizer = self._backend.normalizer
        return text if normalizer is None else normalizer.normalize_str(text)

    def count(self, texts: Iterable[str]) -> dict[str, int]:
        """Return the number of token ids of each text; uses all cores, encodes each text once."""
        counts: dict[str, int] = {}
        distinct = iter(dict.fromkeys(texts))
        while batch := list(itertools.islice(distinct, _COUNT_BATCH)):
            encoded = self._backend.encode_batch_fast(batch, add_special_tokens=False)
            counts.update(zip(batch, map(len, encoded), strict=True))
        return counts

    def __setstate__(self, state: dict):
        self.__dict__.update(state)
        self._backend.encode_special_tokens = True  # pickling does not keep it

    def to_json(self) -> str:
        """Return the content of its tokenizer.json."""
        return self._backend.to_str()

    def bytes_of(self, token: int, special: bool = False) -> bytes:
        """Return what a token adds to the text, in UTF-8; it may be a part of a character.

        b"" for an id without a token, and for a special token unless `special`: then its spelling.
        """
        spelling = self._backend.id_to_token(token)
        if spelling is None or (not special and token in self._special):
            return b""
        try:
            return bytes(_BYTES[letter] for letter in spelling)
        except KeyError:  # an added token, which is not written in the alphabet of bytes
            return spelling.encode()

    @functools.cached_property
    def _special(self) -> frozenset[int]:
        added = self._backend.get_added_tokens_decoder()
        return frozenset(token for token, one in added.items() if one.special)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; special tokens and ids without a token are left out."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=True)


def pieces(
    messages: Sequence[dict],
    media: Sequence[Medium],
    tokenizer: ChatTokenizer,
    generation_prompt: bool = True,
) -> list[Piece]:
    """Apply Qwen2.5-Omni's chat template to messages (spec 5.1).

    The text of an assistant's message and its <|im_end|> are separate pieces with `target` set,
    unless the message has "loss": False: then it is context, as a user's.

    messages: [{"role": "system" | "user" | "assistant", "content": str | [part]}], a part being
      {"type": "text", "text": str} or {"type": "video" | "image" | "audio", ...}. A default system
      message is added when the first message is not a system message.
    media: in the order in which the messages name them.
    generation_prompt: end with the beginning of an assistant's turn.
    Raises UserError on an unknown role or part, or when media and messages differ in number or
    kind.
    """
    out: list[Piece] = []
    atoms = _atoms(messages, media, tokenizer, generation_prompt)
    # Neighbouring atoms that are both text (or ids) and both trained on, or not, make one piece.
    same_piece = lambda atom: (isinstance(atom[0], str | int), atom[1])  # noqa: E731
    for (is_text, target), run in itertools.groupby(atoms, same_piece):
        if not is_text:
            out += [medium for medium, _ in run]
        elif ids := _encode((atom for atom, _ in run), tokenizer):
            out.append(Text(ids, bool(target)))
    return out


def text_counts(
    prompts: Iterable[tuple[Sequence[dict], Sequence[Medium]]],
    tokenizer: ChatTokenizer,
    generation_prompt: bool = True,
) -> list[int]:
    """Count the text ids of each prompt (messages, media), as in `pieces` but much faster."""
    runs: list[list[str]] = []  # of each prompt, the texts that are tokenized in one call
    counts: list[int] = []
    for messages, media in prompts:
        runs.append([])
        counts.append(0)
        atoms = _atoms(messages, media, tokenizer, generation_prompt)
        for kind, run in itertools.groupby(atoms, lambda atom: (type(atom[0]), atom[1])):
            if kind[0] is str:
                runs[-1].append("".join(text for text, _ in run))
            elif kind[0] is int:
                counts[-1] += len(list(run))
    lengths = tokenizer.count(itertools.chain.from_iterable(runs))
    return [
        count + sum(lengths[text] for text in texts)
        for count, texts in zip(counts, runs, strict=True)
    ]


def is_learned(message: dict) -> bool:
    """Whether a message is an answer to train on: an assistant's, unless its "loss" is false."""
    return message["role"] == "assistant" and message.get("loss", True)


def media_kinds(messages: Sequence[dict]) -> list[str]:
    """Return the kinds ("video", "image", "audio") of the media that messages name, in order.

    Raises UserError on an unknown part.
    """
    kinds = [_kind(part) for message in messages for part in _parts(message)]
    return [kind for kind in kinds if kind != "text"]


def _encode(atoms: Iterable[str | int], tokenizer: ChatTokenizer) -> list[int]:
    ids: list[int] = []
    for kind, run in itertools.groupby(atoms, type):
        if kind is str:
            ids += tokenizer.encode("".join(run))
        else:
            ids += run
    return ids


def _atoms(
    messages: Sequence[dict],
    media: Sequence[Medium],
    tokenizer: ChatTokenizer,
    generation_prompt: bool,
) -> Iterator[tuple[str | int | Medium, bool | None]]:
    """Yield texts, special ids and media in order, each with whether it is trained on.

    None: of an answer, and not trained on.
    """
    kinds, given = media_kinds(messages), [medium.kind for medium in media]
    if kinds != given:
        raise UserError(
            f"messages name {len(kinds)} media ({', '.join(kinds) or 'none'}) but {len(given)} "
            f"were given ({', '.join(given) or 'none'}); give one for each part, in the same order"
        )
    if not messages:
        raise UserError("messages: empty; give at least one message with a role and a content")
    if messages[0].get("role") != "system":
        messages = [{"role": "system", "content": DEFAULT_SYSTEM}, *messages]
    queue = iter(media)
    for message in messages:
        if message.get("role") not in ROLES:
            raise UserError(
                f"messages: role {message.get('role')!r} is unknown; use one of {', '.join(ROLES)}"
            )
        # None: an answer that is not trained on. It is tokenized as one that is.
        answers = message["role"] == "assistant" and (is_learned(message) or None)
        yield tokenizer.turn_start, False
        yield f"{message['role']}\n", False
        for part in _parts(message):
            yield (part["text"], answers) if _kind(part) == "text" else (next(queue), False)
        yield tokenizer.turn_end, answers
        yield "\n", False
    if generation_prompt:
        yield tokenizer.turn_start, False
        yield "assistant\n", False


def _parts(message: dict) -> list[dict]:
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list | tuple) and all(isinstance(part, dict) for part in content):
        return list(content)
    raise UserError(f"messages: content must be text or a list of parts, got {content!r:.80}")


def _kind(part: dict) -> str:
    for kind, keys in KINDS.items():
        if part.get("type") == kind or any(key in part for key in keys):
            return kind
    if isinstance(part.get("text"), str):
        return "text"
    raise UserError(
        f"messages: part {part!r:.80} is none of text (with a text), image, audio, video"
    )


# ---- pieces -> tokens, positions, feature rows ---------------------------------------------------


def layout(pieces: Sequence[Piece], config: OmniConfig) -> Layout:
    """Expand media to their tokens and give every token its position and its feature row.

    pieces: of one prompt, in order, as `pieces` returns them.
    Decoding continues at the last position + 1 on all axes, as in transformers 5 (spec 3.4).
    """
    parts: list[Layout] = []
    position = grids = chunks = 0
    for piece in pieces:
        if isinstance(piece, Text):
            part = _text(piece.ids, piece.target)
        else:
            part = _medium(piece, grids, chunks, config)
            grids += piece.grid[0]
            chunks += config.audio.chunks(piece.mel_frames or 0)
        parts.append(part._replace(positions=part.positions + np.int32(position)))
        position += part.next_position
    return _join(parts, position)


def medium_tokens(medium: Medium, config: OmniConfig) -> int:
    """Return the number of tokens of a medium with its markers, as `layout` lays them out."""
    markers = 2 * (medium.kind != "audio") + 2 * (medium.mel_frames is not None)
    cells = math.prod(medium.grid) // config.vision.spatial_merge_size**2
    return markers + cells + config.audio.tokens(medium.mel_frames or 0)


def chunk_slices(values: np.ndarray, tokens_per_chunk: int) -> list[slice]:
    """Cut tokens into chunks by their times (spec 3.2).

    values: i[n], times in position units, not decreasing. Returns slices that cover 0..n; one empty
    slice for n = 0. As in the reference, each token closes at most one chunk: where the time
    between frames exceeds a chunk (below 1 fps), the borders lag behind and split a frame. Dividing
    the times by the chunk's length would give other borders.
    """
    borders = [0]
    for i, value in enumerate(values.tolist()):
        if value >= len(borders) * tokens_per_chunk:
            borders.append(i)
    return [slice(*pair) for pair in itertools.pairwise([*borders, len(values)])]


def _text(ids: Sequence[int], target: bool = False) -> Layout:
    n = len(ids)
    source, row = np.full(n, TEXT, np.int8), np.zeros((n, 2), np.int32)
    return Layout(np.array(ids, np.int32), _running(n), n, source, row, np.full(n, target))


@functools.lru_cache(maxsize=64)  # clips of a data set often have few sizes
def _medium(medium: Medium, first_grid: int, first_chunk: int, config: OmniConfig) -> Layout:
    """Lay out the tokens of a medium's features between its markers.

    The two markers at each end of a video with sound share a position.
    """
    ids, streams, opening, closing = config.tokens, [], [], []
    if medium.kind != "audio":
        opening, closing = [ids.vision_start_token_id], [ids.vision_end_token_id]
        streams.append(_picture(medium, first_grid, config))
    if medium.mel_frames is not None:
        opening, closing = [*opening, ids.audio_start_token_id], [ids.audio_end_token_id, *closing]
        streams.append(_sound(medium.mel_frames, first_chunk, config))
    inner = _interleave(*streams, config=config) if len(streams) == 2 else streams[0]
    parts = (
        _text(opening)._replace(positions=np.zeros((3, len(opening)), np.int32)),
        inner._replace(positions=inner.positions + np.int32(1)),
        _text(closing)._replace(
            positions=np.full((3, len(closing)), 1 + inner.next_position, np.int32)
        ),
    )
    return _join(parts, inner.next_position + 2)


def _picture(medium: Medium, first_grid: int, config: OmniConfig) -> Layout:
    """Lay out an image or a video in the order (grid, row, column) of merged cells."""
    merge = config.vision.spatial_merge_size
    t, h, w = medium.grid[0], medium.grid[1] // merge, medium.grid[2] // merge
    # float32 in this order, as the reference rounds: at 1.98 fps another order changes integers.
    times = np.arange(t, dtype=np.float32) * np.float32(medium.seconds_per_grid)
    times *= np.float32(config.position_id_per_seconds)
    grid, row, column = (axis.ravel() for axis in np.indices((t, h, w), np.int32))
    positions = np.stack([times.astype(np.int32)[grid], row, column])
    ids = config.tokens
    token = ids.video_token_id if medium.kind == "video" else ids.image_token_id
    rows = vision_rows(medium.grid, config.vision) + np.array([first_grid, 0], np.int32)
    return _features(token, positions, VISION, rows)


def vision_rows(grid: tuple[int, int, int], config: VisionConfig) -> np.ndarray:
    """Return the output row of the encoder that each token takes: i32[t * h * w / 4, 2].

    grid: (t, h, w) in patches. Tokens are in the reference's order (frame, row, column of merged
    cells); a row is (temporal grid, window * 16 + place in the window), padding included, as in the
    encoder's padded output.
    """
    merge, side = config.spatial_merge_size, config.window_cells
    times, cell_rows, cell_columns = grid[0], grid[1] // merge, grid[2] // merge
    _, columns = config.windows(cell_rows, cell_columns)
    time, row, column = np.indices((times, cell_rows, cell_columns), dtype=np.int32)
    window = row // side * columns + column // side
    place = row % side * side + column % side
    return np.stack([time, window * side**2 + place], axis=-1).reshape(-1, 2)


def _sound(frames: int, first_chunk: int, config: OmniConfig) -> Layout:
    """Lay out a sound, one token a position (40 ms)."""
    n = config.audio.tokens(frames)
    index = np.arange(n, dtype=np.int32)
    chunk_tokens = config.audio.chunk_tokens
    rows = np.stack([first_chunk + index // chunk_tokens, index % chunk_tokens], axis=1)
    return _features(config.tokens.audio_token_id, _running(n), AUDIO, rows)


def _interleave(video: Layout, audio: Layout, config: OmniConfig) -> Layout:
    """Order video chunk 0, audio chunk 0, video chunk 1, ...; the rest of the longer one last."""
    per_chunk = config.position_id_per_seconds * config.seconds_per_chunk
    both = _join((video, audio), 0)
    index = np.arange(len(both.tokens))
    of_video, of_audio = index[: len(video.tokens)], index[len(video.tokens) :]
    slices = itertools.zip_longest(
        chunk_slices(video.positions[0], per_chunk),
        chunk_slices(audio.positions[0], per_chunk),
        fillvalue=slice(0),
    )
    order = [chunk for v, a in slices for chunk in (of_video[v], of_audio[a]) if len(chunk)]
    # The reference continues after the last chunk in this order, even where an earlier one has
    # larger positions (spec 3.3, 7.1).
    end = int(both.positions[:, order[-1]].max()) + 1
    at = np.concatenate(order)
    return Layout(
        both.tokens[at], both.positions[:, at], end, both.source[at], both.row[at], both.target[at]
    )


def _features(token: int, positions: np.ndarray, source: int, rows: np.ndarray) -> Layout:
    n, end = positions.shape[1], int(positions.max(initial=-1)) + 1
    tokens, sources = np.full(n, token, np.int32), np.full(n, source, np.int8)
    return Layout(tokens, positions, end, sources, rows.astype(np.int32), np.zeros(n, bool))


def _join(parts: Sequence[Layout], next_position: int) -> Layout:
    tokens, positions, _, *others = zip(*parts, strict=True)
    joined = np.concatenate(tokens), np.concatenate(positions, axis=1)
    return Layout(*joined, next_position, *map(np.concatenate, others))


def _running(n: int) -> np.ndarray:
    return np.broadcast_to(np.arange(n, dtype=np.int32), (3, n))

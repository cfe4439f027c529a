"""The chat template (spec 5.1): OpenAI/Qwen messages -> the pieces that a prompt is made of.

    messages + media facts -> pieces() -> [Text, Medium, Text] -> positions.layout()

Text between two media is tokenized in one call, exactly as the reference tokenizes the rendered
template. There are two intended differences. The text of an assistant is tokenized separately from
the "assistant\n" before it, so that training sees the ids that generation produces after its prompt
(the reference merges that newline with one at the beginning of the answer). The spelling of a
special token inside a message ("<|VIDEO|>", "<|im_end|>") stays plain text, where the reference
would insert the token. So no question, subtitle or caption can add a media token without features,
or end its turn.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import tokenizers

from ugc_jax.errors import UserError
from ugc_jax.models.qwen2_5_omni.config import TokenIds
from ugc_jax.models.qwen2_5_omni.tokens import DEFAULT_SYSTEM, SPELLINGS

ROLES = ("system", "user", "assistant")
# The kinds of medium, and the keys that give the kind of a part without a "type", in the order in
# which the template tests them.
KINDS = {"image": ("image", "image_url"), "audio": ("audio", "audio_url"), "video": ("video",)}

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

    The text of an assistant's message and its <|im_end|> are separate pieces with `target` set.

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
            out.append(Text(ids, target))
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
) -> Iterator[tuple[str | int | Medium, bool]]:
    """Yield texts, special ids and media in order, each with whether it is trained on."""
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
        answers = message["role"] == "assistant"
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

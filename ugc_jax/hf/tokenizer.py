"""Tokenizers: reading Qwen2's fast and slow files; building a small one for offline runs."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)  # fmt: skip

from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.errors import UserError
from ugc_jax.files import read_json, write_json
from ugc_jax.models.qwen2_5_omni.config import OmniConfig, TokenIds
from ugc_jax.models.qwen2_5_omni.tokens import (
    CHAT_TEMPLATE,
    PLAIN_TOKENS,
    SPECIAL_TOKENS,
    SPELLINGS,
    token_ids,
)

REMEDY = "copy the tokenizer's files from the base model"
_PIECES = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",  # contractions
        r"[^\r\n\p{L}\p{N}]?\p{L}+",  # a word with what precedes it
        r"\p{N}",  # one digit
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",  # punctuation with its line ends
        r"\s*[\r\n]+",  # line ends
        r"\s+(?!\S)|\s+",  # spaces, the last one before a word left to it
    )
)


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Return the tokenizer of a directory: tokenizer.json, or else vocab.json and merges.txt.

    Raises UserError if these are missing or a file cannot be read.
    """
    directory = Path(directory)
    names = ("tokenizer.json", "vocab.json", "merges.txt")
    fast, vocab, merges = (directory / name for name in names)
    if not fast.exists() and not (vocab.exists() and merges.exists()):
        raise UserError(
            f"{directory}: holds neither tokenizer.json nor vocab.json and merges.txt; "
            "copy them from the base model"
        )
    try:
        if fast.exists():
            return Tokenizer.from_file(str(fast))
        tokenizer = _byte_level_bpe(models.BPE.from_file(str(vocab), str(merges)))
    except Exception as error:  # the tokenizers library raises plain Exception
        path = fast if fast.exists() else vocab
        raise UserError(
            f"{path}: not a readable tokenizer ({error}); copy the file again"
        ) from None
    _add_tokens(tokenizer, _added_tokens(directory), directory)
    return tokenizer


def load_chat_tokenizer(directory: str | Path, tokens: TokenIds) -> ChatTokenizer:
    """Return the same for prompts; UserError also if its special ids differ from `tokens`."""
    return ChatTokenizer(load_tokenizer(directory), tokens, str(directory))


def special_token_ids(tokenizer: Tokenizer, source: str | Path) -> TokenIds:
    """Return the ids of the special tokens; UserError naming `source` if one is absent."""
    ids = {}
    for field, name in SPELLINGS.items():
        ids[field] = tokenizer.token_to_id(name)
        if ids[field] is None:
            raise UserError(
                f"{source}: has no token {name}; give the tokenizer of a Qwen2.5-Omni checkpoint"
            )
    return TokenIds(**ids)


def build_tokenizer(config: OmniConfig, corpus: Iterable[str], out_dir: str | Path):
    """Write tokenizer.json and tokenizer_config.json of a byte-level BPE trained on a corpus.

    The special ids are those of config.tokens. Ids that a small corpus leaves free are named
    <unused_N>; encoding never produces them. The result depends only on config and corpus.
    Raises UserError if the ids are not in Qwen's order.
    """
    first = config.tokens.pad_token_id
    names = (*SPECIAL_TOKENS, *PLAIN_TOKENS)
    for field, expected in token_ids(first).items():
        actual = getattr(config.tokens, field)
        if actual != expected:
            raise UserError(
                f"{field} is {actual}, not in Qwen's order; "
                f"with pad_token_id {first} it must be {expected}"
            )
    tokenizer = _byte_level_bpe(_train(corpus, first))
    _add_tokens(tokenizer, dict(enumerate(map(_added_token, names), first)), out_dir)
    tokenizer.save(str(Path(out_dir) / "tokenizer.json"))
    content = _tokenizer_config(first, names)
    write_json(Path(out_dir) / "tokenizer_config.json", content, indent=2)


def _byte_level_bpe(model: models.BPE) -> Tokenizer:
    """Qwen2's pipeline around a BPE model."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _added_token(name: str) -> AddedToken:
    return AddedToken(name, normalized=False, special=name not in PLAIN_TOKENS)


def _added_tokens(directory: Path) -> dict[int, AddedToken]:
    """{id: token} of the slow form, from tokenizer_config.json or the older added_tokens.json."""
    if (directory / "tokenizer_config.json").exists():
        content = read_json(directory / "tokenizer_config.json", REMEDY)
        if "added_tokens_decoder" in content:
            tokens = content["added_tokens_decoder"].items()
            return {int(i): AddedToken(token.pop("content"), **token) for i, token in tokens}
    content = read_json(directory / "added_tokens.json", REMEDY)
    return {i: _added_token(name) for name, i in content.items()}


def _add_tokens(tokenizer: Tokenizer, tokens: dict[int, AddedToken], source: str | Path):
    """Add the tokens in order of their ids, and check that the library assigns the same ids."""
    for i, token in sorted(tokens.items()):
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != i:
            raise UserError(
                f"{source}: token {token.content} has id {i}, but the vocabulary ends before; "
                "copy the files again"
            )


def _train(corpus: Iterable[str], size: int) -> models.BPE:
    """A BPE model of exactly `size` tokens: bytes, merges from the corpus, unused names."""
    if size < 256:
        raise UserError(f"pad_token_id {size} leaves no room for the 256 byte tokens below it")
    learner = _byte_level_bpe(models.BPE())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=1, show_progress=False, initial_alphabet=alphabet
    )
    learner.train_from_iterator(corpus, trainer)
    model = json.loads(learner.to_str())["model"]
    vocab = model["vocab"] | {f"<unused_{i}>": i for i in range(len(model["vocab"]), size)}
    return models.BPE(vocab=vocab, merges=[tuple(merge) for merge in model["merges"]])


def _tokenizer_config(first: int, names: tuple[str, ...]) -> dict:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "processor_class": "Qwen2_5OmniProcessor",
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(i): {"content": name, **flags, "special": name not in PLAIN_TOKENS}
            for i, name in enumerate(names, first)
        },
        "bos_token": None,
        "eos_token": SPELLINGS["eos_token_id"],
        "pad_token": SPELLINGS["pad_token_id"],
        "unk_token": None,
        "errors": "replace",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "model_max_length": 32768,
        "extra_special_tokens": {
            "audio_token": SPELLINGS["audio_token_id"],
            "audio_bos_token": SPELLINGS["audio_start_token_id"],
            "audio_eos_token": SPELLINGS["audio_end_token_id"],
            "image_token": SPELLINGS["image_token_id"],
            "video_token": SPELLINGS["video_token_id"],
            "vision_bos_token": SPELLINGS["vision_start_token_id"],
            "vision_eos_token": SPELLINGS["vision_end_token_id"],
        },
        "chat_template": CHAT_TEMPLATE,
    }

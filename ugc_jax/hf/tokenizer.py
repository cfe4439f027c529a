"""Tokenizers: read Qwen2's in its fast and its slow form; build a small one, to run offline.

The special tokens are Qwen2.5-Omni's, in their order (spec 3.1). The chat template is that of spec
5.1.
"""

import json
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

from ugc_jax.data.prompt import SPELLINGS, ChatTokenizer
from ugc_jax.errors import UserError
from ugc_jax.hf.config import read_json
from ugc_jax.models.qwen2_5_omni.config import OmniConfig, TokenIds
from ugc_jax.toy import corpus

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_bos|>", "<|vision_eos|>",
    "<|vision_pad|>", "<|IMAGE|>", "<|VIDEO|>",
)  # fmt: skip
PLAIN_TOKENS = (  # added tokens that decoding keeps
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
    "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
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

CHAT_TEMPLATE = r"""
{%- set seen = namespace(image=0, audio=0, video=0) -%}
{%- for message in messages -%}
  {%- if loop.first and message['role'] != 'system' -%}
    {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}
  {%- endif -%}
  {{- '<|im_start|>' + message['role'] + '\n' -}}
  {%- if message['content'] is string -%}
    {{- message['content'] -}}
  {%- else -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
        {%- set seen.image = seen.image + 1 -%}
        {{- 'Picture ' ~ seen.image ~ ': ' if add_vision_id -}}
        {{- '<|vision_bos|><|IMAGE|><|vision_eos|>' -}}
      {%- elif part['type'] == 'audio' or 'audio' in part or 'audio_url' in part -%}
        {%- set seen.audio = seen.audio + 1 -%}
        {{- 'Audio ' ~ seen.audio ~ ': ' if add_audio_id -}}
        {{- '<|audio_bos|><|AUDIO|><|audio_eos|>' -}}
      {%- elif part['type'] == 'video' or 'video' in part -%}
        {%- set seen.video = seen.video + 1 -%}
        {{- 'Video ' ~ seen.video ~ ': ' if add_vision_id -}}
        {{- '<|vision_bos|><|VIDEO|><|vision_eos|>' -}}
      {%- elif 'text' in part -%}
        {{- part['text'] -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {{- '<|im_end|>\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\n' if add_generation_prompt -}}
""".strip()


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of a directory: tokenizer.json, or the slow form, vocab.json and merges.txt.

    Raises UserError if neither is there or a file cannot be read.
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
    """The same, for prompts. UserError, too, if its special ids are not `tokens`."""
    return ChatTokenizer(load_tokenizer(directory), tokens, str(directory))


def special_token_ids(tokenizer: Tokenizer, source: str | Path) -> TokenIds:
    """The ids of Qwen2.5-Omni's special tokens; UserError naming `source` if one is absent."""
    ids = {field: tokenizer.token_to_id(name) for field, name in SPELLINGS.items()}
    for field, name in SPELLINGS.items():
        if ids[field] is None:
            raise UserError(
                f"{source}: has no token {name}; give the tokenizer of a Qwen2.5-Omni checkpoint"
            )
    return TokenIds(**ids)


def build_tokenizer(config: OmniConfig, out_dir: str | Path):
    """Write tokenizer.json and tokenizer_config.json of a byte-level BPE.

    The special ids are those of config.tokens. Ids that the little corpus does not fill are named
    <unused_N> and never come out of encoding. The result depends on nothing but the config. Raises
    UserError if the ids are not in Qwen's order.
    """
    first = config.tokens.pad_token_id
    names = (*SPECIAL_TOKENS, *PLAIN_TOKENS)
    for field, name in SPELLINGS.items():
        actual, expected = getattr(config.tokens, field), first + names.index(name)
        if actual != expected:
            raise UserError(
                f"{field} is {actual}, not in Qwen's order; "
                f"with pad_token_id {first} it must be {expected}"
            )
    tokenizer = _byte_level_bpe(_train(first))
    _add_tokens(tokenizer, dict(enumerate(map(_added_token, names), first)), out_dir)
    tokenizer.save(str(Path(out_dir) / "tokenizer.json"))
    content = json.dumps(_tokenizer_config(first, names), indent=2, ensure_ascii=False)
    (Path(out_dir) / "tokenizer_config.json").write_text(content + "\n")


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
    """{id: token} of the slow form: in tokenizer_config.json, or in the older added_tokens.json."""
    if (directory / "tokenizer_config.json").exists():
        content, _ = read_json(directory / "tokenizer_config.json")
        if "added_tokens_decoder" in content:
            tokens = content["added_tokens_decoder"].items()
            return {int(i): AddedToken(token.pop("content"), **token) for i, token in tokens}
    content, _ = read_json(directory / "added_tokens.json")
    return {i: _added_token(name) for name, i in content.items()}


def _add_tokens(tokenizer: Tokenizer, tokens: dict[int, AddedToken], source: str | Path):
    """Add the tokens in order of their ids, and check that the library counts the same ids."""
    for i, token in sorted(tokens.items()):
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != i:
            raise UserError(
                f"{source}: token {token.content} has id {i}, but the vocabulary ends before; "
                "copy the files again"
            )


def _train(size: int) -> models.BPE:
    """A BPE model of exactly `size` tokens: bytes, merges learnt from the corpus, unused names."""
    if size < 256:
        raise UserError(f"pad_token_id {size} leaves no room for the 256 byte tokens below it")
    learner = _byte_level_bpe(models.BPE())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=1, show_progress=False, initial_alphabet=alphabet
    )
    learner.train_from_iterator(corpus.LINES, trainer)
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
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "errors": "replace",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "model_max_length": 32768,
        "extra_special_tokens": {
            "audio_token": "<|AUDIO|>",
            "audio_bos_token": "<|audio_bos|>",
            "audio_eos_token": "<|audio_eos|>",
            "image_token": "<|IMAGE|>",
            "video_token": "<|VIDEO|>",
            "vision_bos_token": "<|vision_bos|>",
            "vision_eos_token": "<|vision_eos|>",
        },
        "chat_template": CHAT_TEMPLATE,
    }

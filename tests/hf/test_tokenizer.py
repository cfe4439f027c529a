"""Tokenizers: ids and round trips of the built one, the slow form, agreement with transformers."""

import json
import random
import subprocess
import sys

import pytest
from tokenizers import Tokenizer

from ugc_jax.errors import UserError
from ugc_jax.hf.tokenizer import build_tokenizer, load_tokenizer, special_token_ids
from ugc_jax.media.presets import QUESTION
from ugc_jax.models.qwen2_5_omni.config import mid, tiny
from ugc_jax.models.qwen2_5_omni.tokens import CHAT_TEMPLATE, PLAIN_TOKENS, SPECIAL_TOKENS
from ugc_jax.toy import corpus

TEXTS = [
    "A man's dog doesn't bark; it'll meow!  Really?\n\n  Yes.",
    "Ünïcode, e\u0301 and é, 你好世界, привет, 😀👍🏽, \u200f\u202e",
    "1234567890 3.14 x=y**2\t\ttabs   \r\n",
    "<|im_start|>user\n<|vision_bos|><|VIDEO|><|vision_eos|>Hi<|im_end|>\n",
    "<tool_call> <|file_sep|> <|not_a_token|> <unused_1900>",
    "",
    " ",
    QUESTION,
]


def random_texts(count: int) -> list[str]:
    rng = random.Random(0)
    ranges = [
        (32, 127),
        (32, 127),
        (160, 0x250),
        (0x370, 0x530),
        (0x4E00, 0x4F00),
        (0x1F600, 0x1F650),
        (0, 33),
    ]
    return [
        "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(0, 40)))
        for _ in range(count)
    ]


@pytest.mark.parametrize("make", [tiny, mid])
def test_built_tokenizer(tmp_path, make):
    config = make()
    build_tokenizer(config, corpus.LINES, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    first = config.tokens.pad_token_id
    assert special_token_ids(tokenizer, tmp_path) == config.tokens
    assert [tokenizer.id_to_token(first + i) for i in range(22)] == [*SPECIAL_TOKENS, *PLAIN_TOKENS]
    assert sorted(tokenizer.get_vocab().values()) == list(range(first + 22))  # no hole, none beyond
    for text in [*TEXTS, *random_texts(200)]:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(
            ids, skip_special_tokens=False
        ) == tokenizer.normalizer.normalize_str(text)
        assert not any(tokenizer.id_to_token(i).startswith("<unused_") for i in ids)
    assert len(tokenizer.encode(QUESTION).ids) < len(QUESTION) / 4


def test_build_depends_on_the_config_only(tmp_path):
    """Bytewise equal from another process, whose hashes are salted differently."""
    build_tokenizer(tiny(), corpus.LINES, tmp_path)
    files = [(tmp_path / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")]
    code = (
        "import sys; from ugc_jax.models.qwen2_5_omni.config import tiny; "
        "from ugc_jax.hf.tokenizer import build_tokenizer; "
        "from ugc_jax.toy import corpus; "
        "build_tokenizer(tiny(), corpus.LINES, sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert [
        (tmp_path / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")
    ] == files


def test_ids_out_of_order_are_refused(tmp_path):
    import dataclasses

    config = tiny()
    tokens = dataclasses.replace(config.tokens, video_token_id=2020)
    with pytest.raises(UserError, match="video_token_id is 2020, not in Qwen's order"):
        build_tokenizer(dataclasses.replace(config, tokens=tokens), corpus.LINES, tmp_path)


def test_transformers_loads_the_built_tokenizer(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = tiny()
    build_tokenizer(config, corpus.LINES, tmp_path)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    for text in [*TEXTS, *random_texts(100)]:
        assert theirs(text)["input_ids"] == ours.encode(text).ids
    assert theirs.pad_token_id == config.tokens.pad_token_id
    assert theirs.eos_token_id == config.tokens.eos_token_id
    assert (theirs.audio_token, theirs.video_token, theirs.vision_bos_token) == (
        "<|AUDIO|>",
        "<|VIDEO|>",
        "<|vision_bos|>",
    )
    text = "<|im_start|>Hi<tool_call><|im_end|>"
    assert theirs.decode(ours.encode(text).ids, skip_special_tokens=True) == "Hi<tool_call>"
    assert ours.decode(ours.encode(text).ids) == "Hi<tool_call>"


CONVERSATIONS = [
    [{"role": "user", "content": "Hi"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi\nthere "},
        {"role": "assistant", "content": "Yes"},
    ],
    [
        {
            "role": "system",
            "content": [{"type": "text", "text": " two "}, {"type": "text", "text": "parts"}],
        },
        {
            "role": "user",
            "content": [
                {"type": "video", "video": "a.mp4"},
                {"type": "image_url", "image_url": "b"},
                {"type": "text", "text": "<b> & {{ x }}\n"},
                {"type": "audio"},
                {"type": "video"},
                {"type": "nothing"},
            ],
        },
        {"role": "user", "content": []},
    ],
]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize(
    "flags", [{}, {"add_generation_prompt": True}, {"add_vision_id": True, "add_audio_id": True}]
)
def test_chat_template_behaves_as_the_published_one(shared_data, tmp_path, conversation, flags):
    transformers = pytest.importorskip("transformers")
    build_tokenizer(tiny(), corpus.LINES, tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    published = (shared_data / "tokenizer" / "chat_template.jinja").read_text()

    def render(template):
        return tokenizer.apply_chat_template(
            conversation, chat_template=template, tokenize=False, **flags
        )

    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert render(CHAT_TEMPLATE) == render(published)


# ---- files on disk -------------------------------------------------------------------------------


def make_slow(fast: dict, folder):
    """vocab.json and merges.txt as the released repositories have them."""
    (folder / "vocab.json").write_text(json.dumps(fast["model"]["vocab"], ensure_ascii=False))
    merges = "".join(f"{' '.join(merge)}\n" for merge in fast["model"]["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges)


def test_slow_form_of_the_real_tokenizer(shared_data, tmp_path):
    real = shared_data / "tokenizer"
    make_slow(json.loads((real / "tokenizer.json").read_text()), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text((real / "tokenizer_config.json").read_text())
    slow, fast = load_tokenizer(tmp_path), load_tokenizer(real)
    assert slow.get_vocab() == fast.get_vocab()
    for text in [*TEXTS, *random_texts(500)]:
        encoded = fast.encode(text).ids
        assert slow.encode(text).ids == encoded
        for skip in (True, False):
            assert slow.decode(encoded, skip_special_tokens=skip) == fast.decode(
                encoded, skip_special_tokens=skip
            )
    example = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_bos|><|VIDEO|>"
    )
    expected = [
        151644,
        8948,
        198,
        2610,
        525,
        264,
        10950,
        17847,
        13,
        151645,
        198,
        151644,
        872,
        198,
        151652,
        151656,
    ]
    assert slow.encode(example).ids == expected  # spec 5.1
    assert special_token_ids(slow, real).video_token_id == 151656


def test_slow_form_with_added_tokens_json(tmp_path):
    build_tokenizer(tiny(), corpus.LINES, tmp_path)
    fast = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    make_slow(content, tmp_path)
    added = {name: 2000 + i for i, name in enumerate([*SPECIAL_TOKENS, *PLAIN_TOKENS])}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    slow = load_tokenizer(tmp_path)
    for text in TEXTS:
        assert slow.encode(text).ids == fast.encode(text).ids
        assert slow.decode(slow.encode(text).ids) == fast.decode(fast.encode(text).ids)


def test_added_tokens_that_do_not_fit(tmp_path):
    build_tokenizer(tiny(), corpus.LINES, tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").unlink()
    content["model"]["vocab"].popitem()
    make_slow(content, tmp_path)
    with pytest.raises(
        UserError, match=r"token <\|endoftext\|> has id 2000, but the vocabulary ends before"
    ):
        load_tokenizer(tmp_path)


def test_absent_or_broken_files(tmp_path):
    with pytest.raises(
        UserError, match="holds neither tokenizer.json nor vocab.json and merges.txt"
    ):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer.json: not a readable tokenizer"):
        load_tokenizer(tmp_path)


def test_tokenizer_of_another_model(tmp_path):
    build_tokenizer(tiny(), corpus.LINES, tmp_path)
    text = (tmp_path / "tokenizer.json").read_text().replace("<|VIDEO|>", "<|video_pad|>")
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=r"has no token <\|VIDEO\|>"):
        special_token_ids(load_tokenizer(tmp_path), tmp_path)

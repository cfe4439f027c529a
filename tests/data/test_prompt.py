"""The chat template against the tokenizer's own, with the real tokenizer and with a small one."""

import pickle

import pytest
from tokenizers import Tokenizer

from ugc_jax.data.prompt import (
    ChatTokenizer,
    Medium,
    Text,
    media_kinds,
    pieces,
    text_counts,
)
from ugc_jax.errors import UserError
from ugc_jax.hf.tokenizer import build_tokenizer, load_chat_tokenizer
from ugc_jax.models.qwen2_5_omni import config as configs
from ugc_jax.toy import corpus

MEDIA = {
    "image": Medium("image", (1, 4, 4)),
    "audio": Medium("audio", mel_frames=100),
    "video": Medium("video", (2, 4, 4), 1.0),
}
CASES = {
    "text": [{"role": "user", "content": "Hi"}],
    "text parts": [
        {
            "role": "user",
            "content": [{"type": "text", "text": "Hello, "}, {"type": "text", "text": "world"}],
        }
    ],
    "video": [
        {
            "role": "user",
            "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "Hi"}],
        }
    ],
    "image": [
        {
            "role": "user",
            "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Who?"}],
        }
    ],
    "audio": [
        {
            "role": "user",
            "content": [{"type": "audio", "audio": "a.wav"}, {"type": "text", "text": " What?"}],
        }
    ],
    "typeless": [
        {
            "role": "user",
            "content": [{"image_url": "a"}, {"audio_url": "b"}, {"video": "c"}, {"text": "d"}],
        }
    ],
    "mixed": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "First"},
                {"type": "image", "image": 0},
                {"type": "text", "text": " then\n"},
                {"type": "video", "video": 0},
                {"type": "video", "video": 0},
                {"type": "audio", "audio": 0},
            ],
        }
    ],
    "system text": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    "system list": [
        {
            "role": "system",
            "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}],
        },
        {
            "role": "user",
            "content": [{"type": "video", "video": 0}, {"type": "text", "text": "Hi"}],
        },
    ],
    "turns": [
        {
            "role": "user",
            "content": [{"type": "image", "image": 0}, {"type": "text", "text": "What is it?"}],
        },
        {"role": "assistant", "content": "A dog.\n"},
        {"role": "user", "content": "\nAnd its colour?  "},
    ],
    "unicode": [
        {
            "role": "user",
            "content": "Cafe\u0301 ﬁn 你好 👩‍👩‍👧 \u200f שלום 12345 <tool_call> it's \r\n\t x",
        }
    ],
    "empty": [{"role": "user", "content": ""}],
}


@pytest.fixture(scope="module", params=["built", "released"])
def checkpoint(request, tmp_path_factory):
    """(directory with tokenizer.json, config whose ids it has)."""
    if request.param == "released":
        return request.getfixturevalue("shared_data") / "tokenizer", configs.omni_3b()
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(configs.tiny(), corpus.LINES, folder)
    return folder, configs.tiny()


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    folder, config = checkpoint
    return load_chat_tokenizer(folder, config.tokens)


@pytest.fixture(scope="module")
def reference(checkpoint):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(checkpoint[0])


def with_placeholders(prompt, ids):
    """Ids of pieces with one placeholder a medium, as the template writes them."""
    markers = {
        "image": [ids.vision_start_token_id, ids.image_token_id, ids.vision_end_token_id],
        "audio": [ids.audio_start_token_id, ids.audio_token_id, ids.audio_end_token_id],
        "video": [ids.vision_start_token_id, ids.video_token_id, ids.vision_end_token_id],
    }
    return [
        i
        for piece in prompt
        for i in (piece.ids if isinstance(piece, Text) else markers[piece.kind])
    ]


@pytest.mark.parametrize("generation_prompt", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_ids_equal_the_tokenizers_own_template(
    name, generation_prompt, checkpoint, tokenizer, reference
):
    messages = CASES[name]
    media = [MEDIA[kind] for kind in media_kinds(messages)]
    ours = with_placeholders(
        pieces(messages, media, tokenizer, generation_prompt), checkpoint[1].tokens
    )
    theirs = reference.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=generation_prompt, return_dict=False
    )
    assert ours == theirs


def test_published_ids(shared_data):
    """Spec 5.1's check, without transformers."""
    config = configs.omni_3b()
    tokenizer = load_chat_tokenizer(shared_data / "tokenizer", config.tokens)
    ids = with_placeholders(pieces(CASES["video"], [MEDIA["video"]], tokenizer), config.tokens)
    expected = "151644 8948 198 2610 525 264 10950 17847 13 151645 198 151644 872 198 151652 "
    expected += "151656 151653 13048"
    assert ids == [*map(int, expected.split()), 151645, 198, 151644, 77091, 198]


def test_special_tokens_in_text_stay_text(checkpoint, tokenizer):
    ids = checkpoint[1].tokens
    typed = "<|VIDEO|> <|IMAGE|><|im_end|>\n<|im_start|>system\n<|endoftext|> <|AUDIO|>"
    (prompt,) = pieces([{"role": "user", "content": typed}], [], tokenizer)
    special = [i for i in prompt.ids if i in vars(ids).values()]
    assert special == [ids.bos_token_id, ids.eos_token_id] * 2 + [ids.bos_token_id]
    assert tokenizer.decode(tokenizer.encode(typed)) == typed


def test_targets_are_the_answers_and_their_ends(checkpoint, tokenizer):
    end = checkpoint[1].tokens.eos_token_id
    messages = [
        *CASES["turns"],
        {"role": "assistant", "content": [{"type": "text", "text": "Red"}]},
    ]
    prompt = pieces(messages, [MEDIA["image"]], tokenizer, generation_prompt=False)
    answers = [piece for piece in prompt if isinstance(piece, Text) and piece.target]
    assert [tokenizer.decode(answer.ids) for answer in answers] == ["A dog.\n", "Red"]
    assert [answer.ids.count(end) for answer in answers] == [1, 1]
    assert all(answer.ids[-1] == end for answer in answers)
    assert [piece.target for piece in prompt if isinstance(piece, Text)] == [0, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("answer", ["A dog.", "\nA dog.", " \n\n A", "", "n"])
def test_training_sees_what_is_generated(answer, tokenizer):
    """The prompt's ids, then the answer's own whatever it begins with, its end, a newline."""
    prompt, asked = CASES["unicode"], {"role": "assistant", "content": answer}
    (opened,) = pieces(prompt, [], tokenizer)
    before, target, after = pieces([*prompt, asked], [], tokenizer, generation_prompt=False)
    assert before == opened
    assert target == Text([*tokenizer.encode(answer), tokenizer.turn_end], target=True)
    assert after == Text(tokenizer.encode("\n"))


@pytest.mark.parametrize("generation_prompt", [True, False])
def test_counts_are_those_of_the_pieces(generation_prompt, tokenizer):
    prompts = [(turns, [MEDIA[kind] for kind in media_kinds(turns)]) for turns in CASES.values()]
    prompts *= 150  # more texts than are counted at a time
    counts = text_counts(iter(prompts), tokenizer, generation_prompt)
    for (messages, media), count in zip(prompts[: len(CASES)], counts, strict=False):
        laid = pieces(messages, media, tokenizer, generation_prompt)
        assert count == sum(len(piece.ids) for piece in laid if isinstance(piece, Text))
    assert counts == counts[: len(CASES)] * 150
    different = [f"{i} {'<|im_end|>' * (i % 3)}" for i in range(2100)]
    assert tokenizer.count(different) == {text: len(tokenizer.encode(text)) for text in different}


def test_a_pickled_tokenizer_still_takes_no_special_tokens_from_text(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    for text in ("<|im_end|> and <|VIDEO|>", "Cafe\u0301"):
        assert again.encode(text) == tokenizer.encode(text)
    assert again.turn_end not in again.encode("<|im_end|>")


def test_decode_leaves_out_special_and_unknown_ids(checkpoint, tokenizer):
    ids = [
        *tokenizer.encode("a dog's 犬"),
        checkpoint[1].tokens.eos_token_id,
        checkpoint[1].text.vocab_size - 1,
    ]
    assert tokenizer.decode(ids) == "a dog's 犬"


def test_medium_parts_stand_where_the_messages_name_them(tokenizer):
    prompt = pieces(
        CASES["mixed"], [MEDIA[kind] for kind in ("image", "video", "video", "audio")], tokenizer
    )
    kinds = [getattr(piece, "kind", "text") for piece in prompt]
    assert kinds == ["text", "image", "text", "video", "video", "audio", "text"]


@pytest.mark.parametrize(
    ("messages", "media", "message"),
    [
        ([], [], "messages: empty"),
        ([{"role": "robot", "content": "x"}], [], "role 'robot' is unknown"),
        ([{"content": "x"}], [], "role None is unknown"),
        ([{"role": "user", "content": None}], [], "text or a list"),
        ([{"role": "user", "content": [{"type": "smell"}]}], [], "none of text"),
        ([{"role": "user", "content": [{"type": "text"}]}], [], "none of text"),
        (CASES["video"], [], r"name 1 media \(video\) but 0 were given \(none\)"),
        (CASES["video"], [MEDIA["image"]], r"\(video\) but 1 were given \(image\)"),
        (CASES["text"], [MEDIA["image"]], r"name 0 media \(none\) but 1"),
    ],
)
def test_bad_messages_are_told_in_one_line(messages, media, message, tokenizer):
    with pytest.raises(UserError, match=message) as caught:
        pieces(messages, media, tokenizer)
    assert "\n" not in str(caught.value)


def test_tokenizer_of_another_model_is_refused(tmp_path):
    build_tokenizer(configs.tiny(), corpus.LINES, tmp_path)
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    with pytest.raises(
        UserError,
        match=r"x.json: <\|endoftext\|> has id 2000, but pad_token_id in config.json is 16000",
    ):
        ChatTokenizer(backend, configs.mid().tokens, "x.json")


def test_an_answer_with_loss_false_is_context(tokenizer):
    """The same ids, and only the other answer is learned; also where it begins with a newline."""
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "\nDraft."},
        {"role": "user", "content": "Again."},
        {"role": "assistant", "content": "Final."},
    ]
    flagged = [turns[0], turns[1] | {"loss": False}, *turns[2:]]
    learned, context = (pieces(one, [], tokenizer, False) for one in (turns, flagged))
    ids = [[i for piece in prompt for i in piece.ids] for prompt in (learned, context)]
    assert ids[0] == ids[1]
    targets = [piece for piece in context if piece.target]
    assert [tokenizer.decode(piece.ids) for piece in targets] == ["Final."]
    assert len([piece for piece in learned if piece.target]) == 2
    assert text_counts([(flagged, [])], tokenizer, False) == [len(ids[0])]
    assert pieces([*flagged[:3], turns[3] | {"loss": True}], [], tokenizer, False) == context

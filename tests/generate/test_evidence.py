"""Evidence: verdicts by hand, scores in a row of several texts and in a batch, and their cost."""

import functools
import json
import math
import unicodedata

import numpy as np
import pytest

from ugc_jax import UserError
from ugc_jax.data.batching import collate
from ugc_jax.data.hiding import PICTURE, SOUND, hide_some, is_of
from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.data.reading import read_prompts
from ugc_jax.generate import explaining, scoring
from ugc_jax.generate.captioner import BUCKETS
from ugc_jax.generate.evidence import (
    WAYS,
    Explanation,
    balance,
    explain,
    token_spans,
    verdict,
    word_tokens,
)
from ugc_jax.generate.results import coloured_lines, readable
from ugc_jax.generate.settings import EngineConfig
from ugc_jax.hf.tokenizer import load_tokenizer, special_token_ids
from ugc_jax.media.presets import ClipSettings
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.words import WORD

FEW = dict(fps=1, max_pixels=12544, min_pixels=784, max_new_tokens=4)
TEXTS = ["A dog barks twice.", "Nobody speaks.", "红色的车。"]


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ((0.9, 0.3, 0.9, 0.3), "heard"),
        ((0.9, 0.9, 0.2, 0.2), "seen"),
        ((0.9, 0.5, 0.4, 0.2), "both"),
        ((0.9, 0.9, 0.9, 0.1), "either"),
        ((0.9, 0.88, 0.9, 0.85), "text"),
        ((0.05, 0.3, 0.05, 0.3), "unsupported"),  # the sound speaks against it
        ((0.04, 0.04, 0.04, 0.04), "unsupported"),  # neither foretold nor supported
        ((0.9, 0.9, 0.02, 0.3), "seen"),  # sound alone speaks against it, and is overruled
        ((0.99, 0.89, 0.99, 0.8), "heard"),  # half foretold: a small fall of a small one
        ((1e-7, 1e-9, 1e-7, 1e-9), "unsupported"),  # differences of nothing
    ],
)
def test_verdicts_by_hand(probabilities, expected):
    smooth = [math.log(p + 1e-3) for p in probabilities]
    assert verdict(smooth) == expected
    assert verdict(smooth, content=False) != "unsupported"


def test_words_take_their_tokens_and_sentences_their_words():
    """A word of two tokens adds them up; function words do not count in shares."""
    text = "A cat meows. It rains!"
    spans = [(0, 1), (1, 3), (3, 5), (5, 11), (11, 12), (12, 15), (15, 21), (21, 22)]
    assert [tokens for *_, tokens in word_tokens(text, spans)] == [[0], [1, 2], [3], [5], [6]]
    p = np.full((4, 8), 0.9)
    p[2:, 1], p[3, 2], p[[1, 3], 3] = 0.3, 0.3, 0.1  # cat is seen, meows is heard
    p[:, 6] = 0.05, 0.4, 0.05, 0.4  # rains: the sound is against it
    told = explain("clip", text, spans, np.log(p))
    verdicts = {word.text: word.verdict for word in told.words}
    assert verdicts == {"A": "text", "cat": "seen", "meows": "heard", "It": "text",
                        "rains": "unsupported"}  # fmt: skip
    cat = told.words[1]
    assert cat.logprobs[0] == pytest.approx(2 * math.log(0.901))
    assert cat.support == pytest.approx(2 * math.log(0.901 / 0.301), abs=1e-6)
    assert [one.verdict for one in told.sentences] == ["both", "unsupported"]
    assert [text[one.start : one.end] for one in told.sentences] == ["A cat meows.", "It rains!"]
    assert told.shares["seen"] == pytest.approx(1 / 3)
    assert balance(told) == pytest.approx(2 / 3 - 1 / 3)
    assert balance(Explanation("clip")) == 0
    assert json.loads(json.dumps(told.record()))["unsupported"] == ["rains"]


def tokens_by_bytes(tokenizer, text):
    """Word -> the tokens that write any of its bytes, of those that no word before it has."""
    borders, at, done, found = [], 0, 0, []
    for token in tokenizer.encode(text):
        borders.append((at, at + len(tokenizer.bytes_of(token))))
        at = borders[-1][1]
    for match in WORD.finditer(text):
        start, end = (len(text[:place].encode()) for place in match.span())
        own = [n for n, (a, b) in enumerate(borders) if b > start and a < end and n >= done]
        done = own[-1] + 1 if own else done
        found += [(match[0], own)] if own else []
    return found


def words_of(tokenizer, text):
    """Word -> its tokens, as explanations have them."""
    spans = token_spans(tokenizer.encode(text), tokenizer, text)
    return [(text[start:end], tokens) for start, end, tokens in word_tokens(text, spans)]


SCRIPTS = "A pink circle 犬. 개가 짖는다. 뙤약볕 நாய் गाना सुनाई 薔薇 Ein grüner 🐕 bellt"


@pytest.mark.parametrize("text", [SCRIPTS, *SCRIPTS.split()])
def test_words_have_all_tokens_of_their_characters(tokenizer, text):
    assert words_of(tokenizer, text) == tokens_by_bytes(tokenizer, text)


@pytest.mark.parametrize("text", [SCRIPTS, *SCRIPTS.split()])
def test_words_have_all_tokens_of_the_real_tokenizer(real_tokenizer, text):
    assert words_of(real_tokenizer, text) == tokens_by_bytes(real_tokenizer, text)


@pytest.fixture(scope="module")
def real_tokenizer(shared_data):
    """Qwen2's, whose tokens may have a space and the first byte of a character."""
    folder = shared_data / "tokenizer"
    backend = load_tokenizer(folder)
    return ChatTokenizer(backend, special_token_ids(backend, folder), str(folder))


def test_the_log_probability_of_a_character_is_the_sum_of_its_tokens(tokenizer):
    text = "A pink circle 犬."
    ids = tokenizer.encode(text)
    p = np.full((4, len(ids)), 0.9)
    (_, (first, *_)) = tokens_by_bytes(tokenizer, text)[-1]
    p[2:, first] = 0.01  # of three tokens, this one is seen
    dog = explain("", text, token_spans(ids, tokenizer, text), np.log(p)).words[-1]
    assert (dog.text, dog.verdict) == ("犬", "seen")
    assert dog.logprobs[0] == pytest.approx(3 * math.log(0.901))
    assert dog.logprobs[2] == pytest.approx(2 * math.log(0.901) + math.log(0.011))


@pytest.mark.parametrize(
    "text",
    [
        "Café. A pink circle moves left",
        "개가 짖는다. 빨간 원",
        "Tiếng chó sủa. Một vòng tròn đỏ",
        "が鳴く。ガラス",
        "क़लम लाल",  # its normalised form is the longer one
    ],
)
def test_a_decomposed_text_has_the_verdicts_of_the_composed_one(tokenizer, text):
    """And the words are those of the text as it is given."""
    composed, decomposed = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    for form in (composed, decomposed, "क़" + decomposed):
        normal = unicodedata.normalize("NFC", form)
        expected = [
            (unicodedata.normalize("NFC", word), tokens)
            for word, tokens in tokens_by_bytes(tokenizer, normal)
        ]
        found = words_of(tokenizer, form)
        assert [word for word, _ in found] == WORD.findall(form)
        assert [(unicodedata.normalize("NFC", word), own) for word, own in found] == expected


def test_malformed_characters_have_places(tokenizer):
    """Sampled tokens may be parts of characters, which decode to U+FFFD."""
    (first, *_), (space, *_) = tokenizer.encode("犬"), tokenizer.encode(" ")
    ids = [*tokenizer.encode("A"), first, *tokenizer.encode("b"), space, first]
    text = tokenizer.decode(ids)
    assert text == "A�b �"
    spans = token_spans(ids, tokenizer)
    assert [(text[a:b], tokens) for a, b, tokens in word_tokens(text, spans)] == [
        ("A", [0]),
        ("b", [2]),
    ]
    assert spans[-1] == (4, 5)


def test_colours_of_a_terminal():
    word = {"word": "cat", "start": 2, "end": 5, "verdict": "seen", "content": True}
    (line,) = coloured_lines("A cat meows.", [word], 80, True)
    assert line == "A \x1b[32mcat\x1b[0m meows."
    assert coloured_lines("A cat meows.", [word], 6, False) == ["A cat", "meows."]
    told = {"words": [word], "shares": {"seen": 1.0, "heard": 0.0}, "unsupported": []}
    record = {"video": "a.mp4", "caption": "A cat meows.", "evidence": told}
    assert readable(record) == "a.mp4\n  A cat meows.\n  (seen 100%)\n"


@pytest.fixture(scope="module")
def prompts(tiny_captioner, clips):
    """The prompts of two clips, and of one without sound."""
    c = tiny_captioner
    settings = ClipSettings(fps=1, min_pixels=784, max_pixels=12544, question="What is it?")
    files = [str(clips / name) for name in ("a.mp4", "b.mp4", "silent.mp4")]
    how = c.tokenizer, c.config, BUCKETS, EngineConfig(workers=1)
    return [prompt for _, prompt in read_prompts(files, settings, *how)]


def scores(captioner, prompts, texts, rows=None):
    """[clips][texts] f32[4, tokens] as `explaining` scores them, in rows of one batch."""
    config, key = captioner.config, max(prompt.bucket for prompt in prompts)
    ids = [[captioner.tokenizer.encode(text) for text in own] for own in texts]
    batch = collate([prompt.example for prompt in prompts], key, rows or len(prompts), config)
    made = scoring.text_rows(batch, ids, 64, config)
    ways = scoring.hidden_ways(made.batch, WAYS, config)
    found = captioner.engine.score(captioner.params, made, ways)
    return [[found[b, :, place] for place in places] for b, places in enumerate(made.places)]


@functools.cache
def whole(captioner):
    """The compiled log-probabilities [T, V] of a batch of one row."""
    import jax

    @jax.jit
    def logprobs(params, made):
        hidden = thinker.hidden_states(params, captioner.config, captioner.engine.compute, made)
        return jax.nn.log_softmax(thinker.logits(thinker.head(params), hidden[0]))

    return logprobs


def plain(captioner, prompt, text):
    """The same of one text after one prompt, by another way: whole logits, own attention masks."""
    config = captioner.config
    ids = captioner.tokenizer.encode(text)
    batch = collate([prompt.example], prompt.bucket, 1, config)
    n = len(prompt.example.tokens)
    made = scoring.text_rows(batch, [[ids]], 16, config).batch
    made.segment_ids[made.segment_ids == 2] = 1
    out = []
    for kinds in WAYS:
        segments = np.where(is_of(made.tokens, kinds, config), 0, made.segment_ids)
        logprobs = whole(captioner)(captioner.params, made._replace(segment_ids=segments))
        out.append(np.asarray(logprobs)[np.arange(n - 1, n - 1 + len(ids)), ids])
    return np.stack(out)


def test_shared_rows_equal_plain_prompts_and_a_batch_equals_alone(tiny_captioner, prompts):
    together = scores(tiny_captioner, prompts, [TEXTS] * 3)
    for prompt, own in zip(prompts, together, strict=True):
        alone = scores(tiny_captioner, [prompt], [TEXTS[::-1]], rows=2)[0][::-1]
        for text, one, other in zip(TEXTS, own, alone, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
            np.testing.assert_allclose(one, plain(tiny_captioner, prompt, text), atol=1e-5)
    silent = together[2][0]
    np.testing.assert_allclose(silent[0], silent[1], atol=1e-5)  # without sound: no difference
    assert np.abs(together[0][0][0] - together[0][0][1]).max() > 1e-4
    assert np.abs(together[0][0][0] - together[0][0][2]).max() > 1e-4


def test_explaining_at_once_lets_others_between_its_prefills(tiny_captioner, prompts):
    asked = []
    told = explaining.explain_prompt(
        tiny_captioner, prompts[0], TEXTS, check=lambda: asked.append(None)
    )
    assert len(asked) == 1 + len(WAYS)  # the encoders, and a prefill for each way
    expected = scores(tiny_captioner, prompts[:1], [TEXTS])[0]
    for text, one, found in zip(TEXTS, told, expected, strict=True):
        spans = token_spans(tiny_captioner.tokenizer.encode(text), tiny_captioner.tokenizer)
        for word, same in zip(one.words, explain("", text, spans, found).words, strict=True):
            np.testing.assert_allclose(word.logprobs, same.logprobs, atol=1e-4)

    def ends():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        explaining.explain_prompt(tiny_captioner, prompts[0], TEXTS, check=ends)


def test_the_reward_of_completions_equals_explanations(tiny_captioner, prompts):
    """The reward scores ids after the same prompts, without the end-of-text token."""
    from ugc_jax.rl.rows import Completions
    from ugc_jax.rl.supported import balances

    c, end = tiny_captioner, tiny_captioner.tokenizer.turn_end
    ids = [[c.tokenizer.encode(text) for text in own] for own in (TEXTS[:2], ["A", ""])]
    tokens, lengths = np.zeros((2, 2, 32), np.int32), np.zeros((2, 2), np.int32)
    for b, own in enumerate(ids):
        for g, one in enumerate(own):
            tokens[b, g, : len(one) + 1], lengths[b, g] = [*one, end], len(one) + 1
    made = Completions(tokens, lengths, lengths > 0, np.zeros(tokens.shape, np.float32))
    batch = collate([p.example for p in prompts[:2]], prompts[0].bucket, 2, c.config)
    found = balances(c.engine, c.params, batch, made, c.tokenizer)
    told = scores(c, prompts[:2], [TEXTS[:2], ["A"]])
    for b, g in ((0, 0), (0, 1), (1, 0)):
        text = [TEXTS[:2], ["A"]][b][g]
        one = explain("", text, token_spans(ids[b][g], c.tokenizer), told[b][g])
        assert found[b, g] == pytest.approx(balance(one))
    assert found[1, 1] == 0


def test_one_program_for_a_bucket(tiny_captioner, prompts):
    scores(tiny_captioner, prompts, [TEXTS] * 3)
    before = tiny_captioner.engine.programs()
    scores(tiny_captioner, prompts[::-1], [TEXTS[::-1]] * 3)
    assert tiny_captioner.engine.programs() == before


def test_explain_texts_and_own_captions(tiny_captioner, clips):
    files = [str(clips / name) for name in ("a.mp4", "broken.mp4", "a.mp4")]
    told = tiny_captioner.explain(files, [TEXTS[0], "x", TEXTS[1]], **FEW)
    assert [one.text for one in told] == [TEXTS[0], "x", TEXTS[1]]
    assert [word.text for word in told[0].words] == ["A", "dog", "barks", "twice"]
    assert "broken.mp4" in told[1].error
    assert told[0].error is told[2].error is None
    captions = tiny_captioner.caption(files[:1], **FEW)
    (own,) = tiny_captioner.explain(files[:1], **FEW)
    assert own.text == captions[0].caption
    decomposed, half = tiny_captioner.explain(
        files[::2], ["Cafe\u0301. A dog", "Caf\ud800 dog"], **FEW
    )
    (composed,) = tiny_captioner.explain(files[:1], ["Caf\u00e9. A dog"], **FEW)
    assert [word.text for word in decomposed.words] == ["Cafe\u0301", "A", "dog"]
    for word, same in zip(decomposed.words, composed.words, strict=True):
        np.testing.assert_allclose(word.logprobs, same.logprobs, atol=1e-4)
    assert half.text == "Caf\N{REPLACEMENT CHARACTER} dog"
    assert [word.text for word in half.words] == ["Caf", "dog"]
    with pytest.raises(UserError, match="there are 1 for 2 clips"):
        tiny_captioner.explain(files[:2], ["x"], **FEW)
    with pytest.raises(TypeError, match="expected a text for each clip"):
        tiny_captioner.explain(files[:1], [3], **FEW)


def test_curves_sum_what_single_seconds_carry(tiny_captioner, clips):
    """Each curve has a value a part of the time, and none without the medium."""
    files = [str(clips / name) for name in ("a.mp4", "silent.mp4")]
    sound, silent = tiny_captioner.explain(files, TEXTS[:2], by_time=True, **FEW)
    assert sound.times == ((0.0, 1.0), (1.0, pytest.approx(1.2, abs=0.05)))
    curves = [word.curve for word in sound.words]
    assert {len(values) for curve in curves for values in curve.values()} == {2}
    assert all(value >= 0 for curve in curves for values in curve.values() for value in values)
    assert any(any(curve[PICTURE]) for curve in curves)
    # rounding of equal scores is no loss
    assert all(value < 1e-4 for word in silent.words for value in word.curve[SOUND])


def test_time_parts_are_few_and_cover_the_clip(tiny_captioner, prompts):
    example, config = prompts[0].example, tiny_captioner.config
    parts, times = explaining.time_parts(example.tokens, example.positions, config)
    assert set(parts[example.source == 0]) == {-1}
    assert set(parts[example.source > 0]) == {0, 1}
    parts, times = explaining.time_parts(example.tokens, example.positions * 40, config)  # 48 s
    assert len(times) == explaining.PARTS
    assert times[0][0] == 0
    assert parts.max() == explaining.PARTS - 1


def test_some_examples_of_training_have_hidden_media(tiny_captioner, prompts):
    """About the share, a third each; the rest, and all other tokens, stay as they are."""
    config, found = tiny_captioner.config, []
    batch = collate([prompts[0].example], prompts[0].bucket, 1, config)
    sound, picture = (is_of(batch.tokens[0], [kind], config) for kind in (SOUND, PICTURE))
    for step in range(300):
        one = batch._replace(segment_ids=batch.segment_ids.copy())
        hide_some(one, 0.6, step, [7], config)
        gone = one.segment_ids[0] != batch.segment_ids[0]
        assert not (gone & ~(sound | picture)).any()
        found.append((bool(gone[sound].all()), bool(gone[picture].all())))
        again = batch._replace(segment_ids=batch.segment_ids.copy())
        hide_some(again, 0.6, step, [7], config)
        assert np.array_equal(again.segment_ids, one.segment_ids)
    counts = [found.count(one) for one in ((True, False), (False, True), (True, True))]
    assert all(35 <= count <= 85 for count in counts)
    assert 140 <= sum(counts) <= 220

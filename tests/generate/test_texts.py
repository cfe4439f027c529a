"""The text of a completion while its tokens come is that of all its tokens, cut at stop strings."""

import random

import pytest

from ugc_jax.generate.texts import TextStream


def parts(tokenizer, tokens, stop=()):
    stream = TextStream(tokenizer.bytes_of, stop)
    given = []
    for token in tokens:
        given.append(stream.add(token))
        if stream.stopped:
            return given
    return [*given, stream.end()]


@pytest.mark.parametrize("seed", range(20))
def test_parts_are_the_text_of_the_tokens(seed, tokenizer):
    """Any ids: special ones, ids without a token, bytes that are no characters."""
    tokens = random.Random(seed).choices(range(700), k=60)
    expected = tokenizer.decode(tokens).strip()
    assert "".join(parts(tokenizer, tokens)) == expected
    for token in tokens:
        assert tokenizer.bytes_of(token).decode(errors="replace") == tokenizer.decode([token])


def test_a_character_comes_with_its_last_byte(tokenizer):
    tokens = tokenizer.encode("a 🎈")
    given = parts(tokenizer, tokens)
    assert len(tokens) > 3
    assert [part for part in given if part] == ["a", " 🎈"]


def test_a_special_token_has_a_spelling_but_no_text(tokenizer):
    assert tokenizer.bytes_of(tokenizer.turn_end) == b""
    assert tokenizer.bytes_of(tokenizer.turn_end, special=True) == b"<|im_end|>"


LETTERS = "abcdefgh  \n\n éß"


@pytest.mark.parametrize("seed", range(30))
def test_stop_strings_cut_wherever_the_tokens_end(seed, tokenizer):
    rng = random.Random(seed)
    text = "".join(rng.choices(LETTERS, k=40))
    stop = tuple("".join(rng.choices(LETTERS, k=rng.randint(1, 4))) for _ in range(2))
    tokens = [token for letter in text for token in tokenizer.encode(letter)]
    # Letter by letter: the stop string that is complete first counts.
    end = min((at + len(one) for one in stop if (at := text.find(one)) >= 0), default=None)
    ending = [one for one in stop if end is not None and text[:end].endswith(one)]
    expected = text if end is None else text[: end - max(map(len, ending))]
    given = parts(tokenizer, tokens, stop)
    assert "".join(given) == expected.strip()
    assert len(given) == (len(tokens) + 1 if end is None else len(text[:end].encode()))


def test_what_could_begin_a_stop_string_waits(tokenizer):
    letters = [tokenizer.encode(letter)[0] for letter in "xENyEND"]
    assert parts(tokenizer, letters, ("END",)) == ["x", "", "", "ENy", "", "", ""]
    assert parts(tokenizer, letters[:3], ("END",)) == ["x", "", "", "EN"]

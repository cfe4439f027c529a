"""generate/constraints.py: what ends by itself satisfies its schema; the others lose nothing."""

import json
import runpy
from pathlib import Path

import cases
import jax
import numpy as np
import pytest

from ugc_jax.data.batching import bucket_of, collate
from ugc_jax.errors import UserError
from ugc_jax.generate.captioner import BUCKETS
from ugc_jax.generate.constraints import Schemas
from ugc_jax.generate.live import GenerationOptions, Live
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.models.qwen2_5_omni import thinker

CHECK = runpy.run_path(str(Path(__file__).resolve().parents[2] / "launch" / "schema_check.py"))
ANSWER = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}, "sure": {"type": "boolean"}},
    "required": ["answer", "sure"],
    "additionalProperties": False,
}


def asked(schema, samples=1, top_logprobs=0, **options) -> GenerationOptions:
    sampling = SamplingConfig(**(dict(max_new_tokens=256) | options)).resolve()
    return GenerationOptions(sampling, samples, top_logprobs, schema=schema)


def allowed(bits: np.ndarray) -> list[int]:
    return np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")).tolist()


@pytest.fixture(scope="module")
def schemas(tiny_captioner):
    return Schemas(tiny_captioner.tokenizer, tiny_captioner.config.text.vocab_size)


@pytest.fixture
def live(tiny_captioner):
    live = Live(tiny_captioner, places=8, new_tokens=256, waiting=99)
    yield live
    live.close(60)


@pytest.fixture(scope="module")
def prompt(tiny_captioner):
    return CHECK["text_prompt"](tiny_captioner, "Yes or no?")


def answer(live, prompt, what):
    given = CHECK["submit"](live, prompt, what)
    assert given.over.wait(60)
    return given


def test_random_schemas(tiny_captioner):
    """Forty of those that launch/schema_check.py tries by the hundred."""
    figures = CHECK["check"](tiny_captioner, 40, seed=1)
    assert (figures.wrong, figures.disturbed) == ([], 0)
    assert figures.stopped > 25
    assert figures.stopped + figures.cut == 40


def test_what_may_come_next(schemas, tokenizer):
    """An object begins with its brace; white space has an end; so has the text."""
    constraint = schemas.compile({"const": [7]})
    brackets = [
        token for token in allowed(constraint.first) if tokenizer.bytes_of(token)[:1] == b"["
    ]
    assert brackets
    matcher = constraint.matcher()
    for letter in "[7]":
        matcher.take(tokenizer.encode(letter)[0])
    bits = np.zeros_like(constraint.first)
    matcher.allow(bits)
    assert tokenizer.turn_end in allowed(bits)
    assert tokenizer.turn_end not in allowed(constraint.first)
    spaces, space = schemas.compile({}).matcher(), tokenizer.encode(" ")[0]
    spaces.take(tokenizer.encode("{")[0])
    for _ in range(32):
        spaces.allow(bits)
        assert space in allowed(bits)
        spaces.take(space)
    spaces.allow(bits)
    assert space not in allowed(bits)
    # The constraint is the same for the next completion.
    assert allowed(constraint.first) == allowed(schemas.compile({"const": [7]}).first)


@pytest.mark.parametrize(
    ("schema", "names"),
    [
        ({"type": "strin"}, "strin"),
        ({"not": {"type": "string"}}, "not"),
        ({"$ref": "http://example.org/schema"}, "http://example.org/schema"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum .5."),
        ({"enum": [object()]}, "not JSON serializable"),
        ({"enum": [str(number) for number in range(10**5)]}, "too big"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused(schema, names, schemas, live, prompt):
    with pytest.raises(UserError, match=f"^schema: .*{names}.*; leave that part out") as refused:
        schemas.compile(schema)
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="^schema: "):
        CHECK["submit"](live, prompt, asked(schema))


def test_samples_satisfy_the_schema_and_depend_on_the_seed_alone(live, prompt):
    what = asked(ANSWER, temperature=1.0, seed=5)
    alone = answer(live, prompt, what)
    beside = [CHECK["submit"](live, prompt, asked({}, seed=n, temperature=1.0)) for n in range(6)]
    again = answer(live, prompt, what)
    assert again.tokens == alone.tokens
    other = [answer(live, prompt, asked(ANSWER, temperature=1.0, seed=n)) for n in range(6)]
    assert len({tuple(one.tokens) for one in other}) > 1
    assert all(one.over.wait(60) for one in beside)
    for one in (alone, *other):
        if one.reason == "stop":
            assert set(json.loads(one.text)) == {"answer", "sure"}


def test_a_limit_that_cuts_is_a_length(live, prompt):
    given = answer(live, prompt, asked({"type": "string", "minLength": 500}, max_new_tokens=9))
    assert (given.reason, len(given.tokens)) == ("length", 9)
    assert given.text.startswith('"')


def test_log_probabilities_are_those_of_what_may_come(tiny_captioner, schemas, live, prompt):
    """By the uncached forward pass, masked by hand."""
    captioner, tokens = tiny_captioner, []
    what = asked(ANSWER, top_logprobs=20, temperature=1.0, seed=2, max_new_tokens=16)
    done = CHECK["Answer"]()

    def tell(piece):
        tokens.extend(piece.tokens)
        done(piece)

    live.submit(prompt, what, tell)
    assert done.over.wait(60)
    assert done.failure is None
    ids = np.array([token.id for token in tokens], np.int32)
    example, n = prompt.example, len(ids)
    whole = cases.followed(example, ids)
    batch = collate([whole], bucket_of(whole, BUCKETS, captioner.config), 1, captioner.config)
    how = captioner.params, captioner.config, captioner.engine.compute
    hidden = thinker.hidden_states(*how, batch)
    at = len(example.tokens) - 1
    logits = np.array(thinker.logits(thinker.head(captioner.params), hidden[0, at : at + n]))
    constraint = schemas.compile(ANSWER)
    matcher, bits, narrow = constraint.matcher(), np.zeros_like(constraint.first), 0
    for token, row in zip(tokens, logits, strict=True):
        matcher.allow(bits)
        may = allowed(bits)
        masked = np.full_like(row, -np.inf)
        masked[may] = row[may]
        expected = np.asarray(jax.nn.log_softmax(masked))
        assert token.id in may
        np.testing.assert_allclose(token.logprob, expected[token.id], atol=2e-4)
        assert len(token.top) == min(20, len(may))
        np.testing.assert_allclose(
            [one[2] for one in token.top], np.sort(expected)[::-1][: len(token.top)], atol=2e-4
        )
        narrow += len(may) < 20
        matcher.take(token.id)
    assert narrow > 0


def test_several_samples_under_a_schema(live, prompt):
    pieces, done = {0: "", 1: "", 2: ""}, []

    def tell(piece):
        pieces[piece.sample] += piece.text
        if piece.finish_reason:
            done.append(piece.finish_reason)

    live.submit(prompt, asked({"enum": ["a", "bc", 5]}, samples=3, temperature=1.0, seed=1), tell)
    live.close(60)
    assert done == ["stop"] * 3
    assert all(json.loads(text) in ("a", "bc", 5) for text in pieces.values())


class Failing:
    """Stands for a compiler whose constraints become too complex at their third token."""

    def __init__(self, schemas):
        self.schemas = schemas

    def compile(self, schema):
        constraint = self.schemas.compile(schema)
        matcher = constraint.matcher

        def failing():
            made = matcher()
            taken = []
            take = made.take

            def counted(token):
                taken.append(token)
                if len(taken) == 3:
                    raise UserError("schema: too complex; give a simpler one")
                take(token)

            made.take = counted
            return made

        constraint.matcher = failing
        return constraint


def test_a_schema_that_becomes_too_complex_ends_its_request_only(live, prompt, schemas):
    expected = answer(live, prompt, asked(None))
    live._compiler = Failing(schemas)
    others = [CHECK["submit"](live, prompt, asked(None)) for _ in range(3)]
    long = {"type": "array", "items": {"const": 1}, "minItems": 4}  # of more than three tokens
    assert answer(live, prompt, asked(long, samples=2)).failure == (
        "schema: too complex; give a simpler one"
    )
    for other in others:
        assert other.over.wait(60)
        assert other.tokens == expected.tokens
    live._compiler = schemas
    assert answer(live, prompt, asked({"enum": [1]})).text == "1"

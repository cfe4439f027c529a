"""Engine.run: places that refill give each prompt what it gets alone, whatever else decodes."""

import dataclasses
import itertools
import random

import cases
import jax
import numpy as np
import pytest

from ugc_jax import sharding
from ugc_jax.data.batching import BucketKey, Buckets, bucket_of, collate
from ugc_jax.errors import UserError
from ugc_jax.generate import decode
from ugc_jax.generate import engine as engine_module
from ugc_jax.generate.engine import (
    CANCELLED,
    Engine,
    Finished,
    Group,
    Listed,
    Request,
    Streamed,
    plan_places,
)
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.models.compute import Compute
from ugc_jax.models.params import param_shardings
from ugc_jax.models.qwen2_5_omni import config as config_lib
from ugc_jax.models.qwen2_5_omni import thinker

CONFIG = cases.fewer_layers(config_lib.tiny())
PROMPTS = [
    [20], [4, ("video", 4, 84, 84, 231), 6], [5, ("image", 84, 112), 9], [7],
    [5, ("audio", 237), 7], [100], [4, ("video", 4, 84, 112, None), 6], [150], [3],
]  # fmt: skip
LIMITS = [16, 3, 9, 1, 12, 7, 2, 16, 5]
SAMPLED = dict(temperature=1.0, top_p=0.9, seed=5)
KINDS = {
    "greedy": [{}] * 9,
    "sampled": [SAMPLED] * 9,
    # Each row has its own: greedy, sampled, truncated and penalised ones beside each other.
    "of every kind": [
        {},
        SAMPLED,
        dict(temperature=0.7, seed=1),
        dict(repetition_penalty=1.3),
        {},
        dict(temperature=1.5, top_k=20, seed=2),
        {},
        SAMPLED | dict(repetition_penalty=1.2),
        {},
    ],  # fmt: skip
}


def requests(kind: str, samples: int = 1) -> list[Request]:
    """Of all examples, though most tests ask the first nine."""
    return [
        Request(
            number,
            SamplingConfig(max_new_tokens=limit, **options).resolve(),
            [number * samples + s for s in range(samples)],
        )
        for number, (limit, options) in enumerate(
            itertools.islice(itertools.cycle(zip(LIMITS, KINDS[kind], strict=True)), len(EXAMPLES))
        )
    ]


# 64 clips: each kind of prompt several times, with other noise.
EXAMPLES = [cases.make_example(CONFIG, PROMPTS[seed % len(PROMPTS)], seed) for seed in range(64)]
KEYS = [bucket_of(example, Buckets(), CONFIG) for example in EXAMPLES]
LARGEST = BucketKey(*map(max, zip(*KEYS, strict=True)))


def group(members: list[tuple[int, Request]], rows: int, key: BucketKey = LARGEST) -> Group:
    """Prompts by number, in a bucket that holds all of them (few programs)."""
    batch = collate([EXAMPLES[number] for number, _ in members], key, rows, CONFIG)
    empty = [None] * (rows - len(members))
    return Group(batch, [request for _, request in members] + empty)


def run(engine, params, kind, places, order=range(9), size=2, samples=1, at_a_time=1, **how):
    """{(number, sample): tokens}, by groups of `size` prompts."""
    asked = requests(kind, samples)
    numbers = list(order)
    groups = [
        group([(number, asked[number]) for number in numbers[i : i + size]], size)
        for i in range(0, len(numbers), size)
    ]
    made = {}
    for one in engine.run(params, Listed(groups), places, 16, at_a_time, most=9, **how):
        assert one.error is None
        assert (one.tag, one.sample) not in made
        assert len(one.logprobs) == len(one.tokens) <= LIMITS[one.tag % len(LIMITS)]
        assert one.stopped == (one.tokens[-1] == engine.config.tokens.eos_token_id)
        made[one.tag, one.sample] = one.tokens.tolist()
    return made


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jax.numpy.array, cases.random_params(CONFIG, stacked=False))


@pytest.fixture(scope="module")
def config(params):
    """Ends a text with a token that the greedy completion of the first prompt soon has."""
    engine = Engine(CONFIG, Compute())
    tokens = run(engine, params, "greedy", 1, order=[0], size=1)[0, 0]
    later = next(token for token in tokens[3:] if token not in tokens[:3])
    ids = dataclasses.replace(CONFIG.tokens, eos_token_id=later)
    return dataclasses.replace(CONFIG, tokens=ids)


@pytest.fixture(scope="module")
def engine(config):
    return Engine(config, Compute())


@pytest.fixture(scope="module")
def alone(engine, params):
    """What each prompt gets alone, by kind."""
    found = {}
    with jax.default_matmul_precision("highest"):
        for kind in KINDS:
            found[kind] = {}
            for number in range(9):
                found[kind] |= run(engine, params, kind, 1, order=[number], size=1)
    assert len(found["greedy"][0, 0]) < LIMITS[0]  # one that ends by itself
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("places", "size"), [(2, 3), (4, 2)])
@pytest.mark.usefixtures("highest_precision")
def test_a_prompt_gets_what_it_gets_alone(kind, places, size, engine, params, alone):
    assert run(engine, params, kind, places, size=size) == alone[kind]


@pytest.mark.usefixtures("highest_precision")
def test_each_of_64_clips_gets_what_it_gets_alone(engine, params):
    numbers = range(64)
    alone = {}
    for number in numbers:
        alone |= run(engine, params, "of every kind", 1, order=[number], size=1)
    order = random.Random(0).sample(numbers, 64)
    assert run(engine, params, "of every kind", 4, order) == alone


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.usefixtures("highest_precision")
def test_the_order_does_not_matter(seed, engine, params, alone):
    order = random.Random(seed).sample(range(9), 9)
    assert run(engine, params, "of every kind", 3, order) == alone["of every kind"]


@pytest.mark.parametrize("chunk", [(1, 99), (32, 1), (5, 2)])
@pytest.mark.usefixtures("highest_precision")
def test_the_length_of_a_chunk_does_not_matter(chunk, engine, params, alone, monkeypatch):
    chunk = decode.Chunk(*map(np.int32, chunk))
    monkeypatch.setattr(engine_module, "chunk_of", lambda mesh, rows: chunk)
    assert run(engine, params, "of every kind", 3) == alone["of every kind"]


def test_a_chunk_of_an_accelerator_ends_with_an_eighth_of_its_rows(engine, params, monkeypatch):
    """Of eight rows, one; without that, the 32 steps of a chunk would be enough for all."""
    ended, program = [], engine._advance

    def advance(*arguments, **options):
        state = program(*arguments, **options)
        ended.append(int(np.sum(np.asarray(state.done))))
        return state

    monkeypatch.setattr(engine, "_advance", advance)
    monkeypatch.setattr(engine_module, "on_cpu", lambda mesh: False)
    run(engine, params, "greedy", 8, size=8, order=range(8))
    first, *ended = ended
    assert first == 8  # of the empty state, which makes the program
    assert ended == sorted(set(ended))
    assert len(ended) > 3
    assert ended[-1] == 8


@pytest.mark.usefixtures("highest_precision")
def test_samples_follow_within_their_place(engine, params):
    """Five samples of each prompt, two or all five at a time."""
    made = [run(engine, params, "sampled", 3, samples=5, at_a_time=rows) for rows in (2, 5)]
    assert made[0] == made[1]
    assert len(made[0]) == 45
    assert len({tuple(made[0][7, sample]) for sample in range(5)}) == 5


@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 8, 1)], ids=str)
@pytest.mark.usefixtures("highest_precision")
def test_a_mesh_gives_the_same(mesh, config, alone, monkeypatch):
    mesh = sharding.make_mesh(*mesh)
    split = param_shardings(thinker.declare(config), mesh)
    params = jax.device_put(cases.random_params(CONFIG), split)
    engine = Engine(config, Compute(), mesh)
    made = run(engine, params, "of every kind", 8, size=8)
    assert made == alone["of every kind"]
    met = sizes_met(engine, monkeypatch)
    assert run(engine, params, "of every kind", 16, size=8, rows="shrinking") == made
    assert met == [(16, 16), (8, 8)] + [(4, 4)] * (sharding.round_up_rows(mesh, 1) == 4)


def sizes_met(engine, monkeypatch) -> list[tuple[int, int]]:
    """Sizes (places, rows) of the states that chunks begin with from now on, as they change.

    The host looks after each step, and rows move for any number of steps.
    """
    monkeypatch.setattr(engine_module, "STEPS", {"cpu": 1})
    monkeypatch.setattr(engine_module, "MOVE_STEPS", 1)
    met, program = [], engine._advance

    def advance(params, state, *rest, **how):
        size = len(state.length), len(state.done)
        if met[-1:] != [size]:
            met.append(size)
        return program(params, state, *rest, **how)

    advance._cache_size = program._cache_size
    monkeypatch.setattr(engine, "_advance", advance)
    return met


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("highest_precision")
def test_fewer_rows_as_others_end(kind, engine, params, alone, monkeypatch):
    met = sizes_met(engine, monkeypatch)
    assert run(engine, params, kind, 9, size=3, rows="shrinking") == alone[kind]
    assert met[0] == (9, 9)
    assert met[-1] in ((1, 1), (2, 2))  # the last two rows may end together
    assert met == sorted(set(met), reverse=True)


@pytest.mark.usefixtures("highest_precision")
def test_samples_move_into_places_that_are_free(engine, params, monkeypatch):
    """Six samples of a prompt in each of three places; the prompt that is longest ends in all."""
    asked = dict(samples=6, at_a_time=6, size=3)
    whole = run(engine, params, "of every kind", 3, **asked)
    met = sizes_met(engine, monkeypatch)
    assert run(engine, params, "of every kind", 3, rows="shrinking", **asked) == whole
    assert met[0] == (3, 18)
    assert met[-1] == (3, 6)


class Arriving:
    """A Source whose prompts come in waves: a wave is taken when the one before has begun."""

    def __init__(self, waves: list[list[Group]]):
        self._waves, self._asked = waves, 0

    def take(self, wait: bool, free: int) -> Group | None:
        if not self._waves or free <= 0:
            return None
        self._asked += 1
        if not self._waves[0]:
            if self._asked % 3 and not wait:
                return None
            self._waves.pop(0)
            return self.take(wait, free)
        return self._waves[0].pop(0)


@pytest.mark.parametrize("kind", ["greedy", "of every kind"])
@pytest.mark.usefixtures("highest_precision")
def test_places_follow_the_prompts(kind, engine, params, alone, monkeypatch):
    """One prompt, then three more, then all; the last one goes on alone."""
    met, asked = sizes_met(engine, monkeypatch), requests(kind)
    groups = [group([(number, asked[number])], 1) for number in range(9)]
    source = Arriving([groups[:1], groups[1:4], groups[4:]])
    run = engine.run(params, source, 8, 16, rows="following")
    found = {(one.tag, one.sample): one.tokens.tolist() for one in run}
    assert found == alone[kind]
    assert met[0] == (1, 1)
    assert (8, 8) in met
    assert met.index((8, 8)) < len(met) - 1  # fewer again
    assert set(met) <= {(8, 8), (2, 2), (1, 1)}
    programs = engine.programs()
    again = Arriving([groups[:1], groups[1:4], groups[4:]])
    assert len(list(engine.run(params, again, 8, 16, rows="following"))) == 9
    assert engine.programs() == programs


def test_sizes_that_follow(monkeypatch):
    assert engine_module.following_sizes(None, 32, 1) == [(32, 1), (8, 1), (2, 1), (1, 1)]
    mesh = sharding.make_mesh(2, 2, 2)
    assert engine_module.following_sizes(mesh, 32, 1) == [(32, 1), (8, 1), (4, 1)]
    monkeypatch.setattr(engine_module, "on_cpu", lambda mesh: False)
    assert engine_module.following_sizes(None, 64, 1) == [(64, 1), (8, 1), (1, 1)]


@pytest.mark.usefixtures("highest_precision")
def test_rows_that_soon_end_stay(engine, params, alone, monkeypatch):
    met = sizes_met(engine, monkeypatch)
    monkeypatch.setattr(engine_module, "MOVE_STEPS", 17)
    assert run(engine, params, "greedy", 9, size=3, rows="shrinking") == alone["greedy"]
    assert met == [(9, 9)]


@pytest.mark.parametrize(
    ("of_cpu", "sizes"),
    [
        (True, [(4, 6), (4, 4), (4, 3), (4, 2), (4, 1), (3, 1), (2, 1), (1, 1)]),
        (False, [(4, 4), (4, 2)]),
    ],
)
def test_sizes_that_rows_end_in(of_cpu, sizes, monkeypatch):
    monkeypatch.setattr(engine_module, "on_cpu", lambda mesh: of_cpu)
    assert engine_module.shrinking_sizes(None, 4, 8) == [(4, 8), *sizes]
    mesh = sharding.make_mesh(2, 2, 2)
    most = engine_module.shrinking_sizes(mesh, 16, 1)[1:]
    assert most == ([(12, 1), (8, 1), (4, 1)] if of_cpu else [(8, 1)])


class Full:
    """Stands for a program of an engine on a device whose memory is exhausted at times."""

    def __init__(self, program, is_full):
        self._program, self._is_full, self.refused = program, is_full, 0

    def __call__(self, *args, **kwargs):
        if self._is_full(*args, **kwargs):
            self.refused += 1
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return self._program(*args, **kwargs)

    def _cache_size(self):
        return self._program._cache_size()


@pytest.mark.usefixtures("highest_precision")
def test_exhausted_memory_loses_nothing(config, params, alone, caplog):
    """Four places are too many for the steps, and two prompts for a prefill."""
    engine = Engine(config, Compute())
    engine._advance = Full(engine._advance, lambda _, state, *__, **___: len(state.length) > 1)
    engine._prefill = Full(engine._prefill, lambda _, x, *__: len(x) > 1)
    assert run(engine, params, "sampled", 4) == alone["sampled"]
    assert engine._prefill.refused > 0
    assert "1 prompts decode at a time from now on" in caplog.text


@pytest.mark.parametrize(
    ("rows", "expected"),
    [("fixed", "prefill empty prefill"), ("shrinking", "prefill prefill empty")],
)
def test_when_places_are_made(rows, expected, engine, params, monkeypatch):
    """While the first prompts are computed; in rollouts after all that are prefilled together."""
    met = []
    for name in ("_prefill", "_empty"):

        def seen(*_, name=name, **__):
            met.append(name[1:])

        monkeypatch.setattr(engine, name, Full(getattr(engine, name), seen))
    run(engine, params, "greedy", 4, range(4), rows=rows)
    assert " ".join(met).startswith(expected)


@pytest.mark.parametrize("kind", ["fixed", "shrinking"])
@pytest.mark.usefixtures("highest_precision")
def test_memory_too_small_for_places_beside_a_prefill(kind, engine, params, alone, monkeypatch):
    """The places are halved as when they are made later; it is not tried before every group."""
    full = Full(engine._empty, lambda *, places, **_: places > 1)
    monkeypatch.setattr(engine, "_empty", full)
    assert run(engine, params, "greedy", 4, rows=kind) == alone["greedy"]
    assert full.refused == (4 if kind == "fixed" else 2)  # of 4 places and of 2


class Exhausted(Listed):
    """A source that exceeds the memory `times` before it gives its second group."""

    def __init__(self, groups, times: int, idle: bool):
        """idle: not before nothing decodes."""
        super().__init__(groups)
        self._times, self._idle, self._count = times, idle, 0

    def take(self, wait, free):
        if self._count and self._idle and not wait:
            return None
        if self._count and self._times:
            self._times -= 1
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        self._count += 1
        return super().take(wait, free)


@pytest.mark.parametrize("places", [1, 4])
@pytest.mark.parametrize("idle", [False, True], ids=["while others decode", "beside empty places"])
@pytest.mark.usefixtures("highest_precision")
def test_a_source_that_exceeds_the_memory_is_asked_again(
    idle, places, engine, params, alone, caplog
):
    """When others have ended, and without empty places; no prompt is refused for it."""
    asked = requests("greedy")
    groups = [group([(number, asked[number])], 1) for number in (0, 2)]
    made = {
        (one.tag, one.sample): one.tokens.tolist()
        for one in engine.run(params, Exhausted(groups, 1, idle), places, 16)
    }
    assert made == {(number, 0): alone["greedy"][number, 0] for number in (0, 2)}
    assert "from now on" not in caplog.text
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        list(engine.run(params, Exhausted(groups, 99, idle), places, 16))


def test_another_error_while_places_are_made_is_raised(engine, params, monkeypatch):
    calls = []

    def broken(**_):
        calls.append(1)
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(engine, "_empty", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        run(engine, params, "greedy", 4)
    assert len(calls) == 1


def test_a_batch_without_memory_is_refused(config, params):
    """No empty completions that nobody asked for."""
    engine = Engine(config, Compute())
    engine._advance = Full(engine._advance, lambda *_, **__: True)
    batch = group([(0, requests("greedy")[0])], 1).batch
    message = f"a prompt of {LARGEST.tokens} tokens exceeds the device's memory"
    with pytest.raises(UserError, match=message):
        engine.generate(params, batch, SamplingConfig(max_new_tokens=2), [0])


def test_a_prompt_that_is_too_large_is_told_and_the_others_go_on(config, params):
    engine = Engine(config, Compute())
    engine._prefill = Full(engine._prefill, lambda _, x, *__: x.shape[1] == LARGEST.tokens)
    asked = requests("greedy")
    groups = [group([(number, asked[number])], 1, KEYS[number]) for number in (0, 7, 3)]
    made = list(engine.run(params, Listed(groups), 2, 16))
    assert sorted(one.tag for one in made) == [0, 3, 7]
    failed = {one.tag: one.error for one in made if one.error is not None}
    assert failed == {7: f"a prompt of {LARGEST.tokens} tokens exceeds the device's memory"}


@pytest.mark.usefixtures("highest_precision")
def test_a_device_holds_the_heads_that_are_its_own():
    """A mesh that splits the two key/value heads has room for twice as many places; not four."""
    model, places = config_lib.SIZES["tiny"](), {}
    for tensor in (1, 2, 4):
        mesh = sharding.make_mesh(1, 1, tensor, jax.devices()[:tensor])
        one = Engine(model, Compute(), mesh)
        places[tensor] = plan_places(one, 128, 64, 1, None, free=2e6)
    assert places[1] > 4
    assert places[2] == pytest.approx(2 * places[1], abs=1)
    assert places[4] == places[1]


def test_places_grow_with_the_prompts(config, params, alone):
    """A short prompt decodes when a long one comes; a second pass compiles nothing."""
    engine = Engine(config, Compute())
    asked = requests("greedy")

    def tokens():
        groups = [group([(number, asked[number])], 1, KEYS[number]) for number in (0, 3, 7, 8)]
        return {
            (one.tag, one.sample): one.tokens.tolist()
            for one in engine.run(params, Listed(groups), 2, 16)
        }

    assert tokens() == {
        key: value for key, value in alone["greedy"].items() if key[0] in (0, 3, 7, 8)
    }
    programs = engine.programs()
    assert (programs["prefill"], programs["decode"]) == (2, 2)
    tokens()
    assert engine.programs() == programs


class EveryThird:
    """An engine.Constraint: token number n of a completion is n modulo 3, or the end of text."""

    def __init__(self, eos: int, fails_at: int = 99):
        self.eos, self.fails_at = eos, fails_at
        self.first = self.bits(0)

    def bits(self, n: int) -> np.ndarray:
        tokens = np.arange(CONFIG.text.vocab_size)
        allowed = (tokens % 3 == n % 3) | (tokens == self.eos)
        padded = np.pad(allowed, (0, -len(allowed) % 32))
        return np.packbits(padded, bitorder="little").view(np.uint32)

    def matcher(self):
        return Counting(self)


class Counting:
    def __init__(self, constraint):
        self.constraint, self.count = constraint, 0

    def allow(self, bits):
        if self.count >= self.constraint.fails_at:
            raise UserError("schema: too complex")
        bits[:] = self.constraint.bits(self.count)

    def take(self, token):
        assert token % 3 == self.count % 3
        if self.constraint.fails_at == 0:
            raise UserError("schema: too complex")
        self.count += 1


def mixed(engine, params, places, constrained=range(0, 9, 2), size=2, change=lambda one: one):
    """{(number, sample): Finished}, some prompts constrained, in groups with the others."""
    constraint = EveryThird(engine.config.tokens.eos_token_id)
    asked = [
        change(one._replace(constraint=constraint if number in constrained else None))
        for number, one in enumerate(requests("of every kind")[:9])
    ]
    groups = [group(list(enumerate(asked))[i : i + size], size) for i in range(0, 9, size)]
    made = [one for one in engine.run(params, Listed(groups), places, 16)]
    return {(one.tag, one.sample): one for one in made}


@pytest.mark.parametrize("mesh", [None, (2, 2, 2)], ids=str)
@pytest.mark.usefixtures("highest_precision")
def test_constrained_rows_beside_others(mesh, config, engine, params, alone):
    """Each row gets what it gets alone, and a constrained one takes what it may."""
    expected = {}
    for number in range(0, 9, 2):
        only = mixed(engine, params, 1, [number], size=1)
        expected[number, 0] = only[number, 0].tokens.tolist()
    size = 2
    if mesh is not None:
        mesh, size = sharding.make_mesh(*mesh), 4
        split = param_shardings(thinker.declare(config), mesh)
        params = jax.device_put(cases.random_params(CONFIG), split)
        engine = Engine(config, Compute(), mesh)
    made = mixed(engine, params, 4, size=size)
    assert len(made) == 9
    for key, one in made.items():
        wanted = expected[key] if key in expected else alone["of every kind"][key]
        assert (one.error, one.tokens.tolist()) == (None, wanted)
    eos = config.tokens.eos_token_id
    for tokens in expected.values():
        assert all(token % 3 == n % 3 or token == eos for n, token in enumerate(tokens))


@pytest.mark.usefixtures("highest_precision")
def test_exhausted_memory_with_constrained_rows_loses_nothing(config, engine, params):
    expected = mixed(engine, params, 4)
    full = Engine(config, Compute())
    full._advance = Full(full._advance, lambda _, state, *__, **___: len(state.length) > 1)
    made = mixed(full, params, 4)
    assert full._advance.refused > 0
    assert {key: one.tokens.tolist() for key, one in made.items()} == {
        key: one.tokens.tolist() for key, one in expected.items()
    }


@pytest.mark.parametrize("fails_at", [0, 4])
@pytest.mark.usefixtures("highest_precision")
def test_a_constraint_that_fails_ends_its_completions_only(fails_at, config, engine, params):
    """Also where the next sample of its place fails at its first token."""
    expected = mixed(engine, params, 4)
    failing = EveryThird(config.tokens.eos_token_id, fails_at)
    made = mixed(
        engine, params, 4,
        change=lambda one: (
            one._replace(constraint=failing, key_ids=[0, 1, 2]) if one.tag == 0 else one
        ),
    )  # fmt: skip
    assert [made.pop((0, sample)).error for sample in range(3)] == ["schema: too complex"] * 3
    del expected[0, 0]
    assert {key: one.tokens.tolist() for key, one in made.items()} == {
        key: one.tokens.tolist() for key, one in expected.items()
    }


def longer(one: Request) -> Request:
    """Of several chunks of steps."""
    return one._replace(sampling=dataclasses.replace(one.sampling, max_new_tokens=48))


@pytest.mark.parametrize("full", [False, True], ids=["", "memory exhausted"])
@pytest.mark.usefixtures("highest_precision")
def test_what_streams_is_the_beginning_of_the_completion(full, config, params):
    """Each token once, also of rows that are begun anew; its top tokens are in their order."""
    asked = [longer(one) for one in requests("of every kind")[:9]]
    engine = Engine(config, Compute())

    def completions(asked):
        groups = [group(list(enumerate(asked))[i : i + 3], 3) for i in range(0, 9, 3)]
        return engine.run(params, Listed(groups), 3, 64)

    expected = {one.tag: one.tokens.tolist() for one in completions(asked)}
    if full:  # at the second chunk of steps and later, while there is more than one place
        calls = itertools.count()
        program = engine._advance
        engine._advance = Full(
            program, lambda _, state, *__, **___: len(state.length) > 1 and next(calls) > 0
        )
    asked = [one._replace(streams=True, top_logprobs=True) for one in asked]
    streamed, finished = {number: [] for number in range(9)}, {}
    for one in completions(asked):
        assert one.tag not in finished
        if isinstance(one, Streamed):
            assert len(one.tokens) == len(one.logprobs) == len(one.top.tokens) > 0
            streamed[one.tag].append(one)
        else:
            finished[one.tag] = one
    if full:
        assert engine._advance.refused > 0
    assert {number: one.tokens.tolist() for number, one in finished.items()} == expected
    assert sum(map(len, streamed.values())) > 9
    for number, one in finished.items():
        given = [token for part in streamed[number] for token in part.tokens.tolist()]
        assert given == one.tokens.tolist()[: len(given)]
        assert np.all(np.diff(one.top.logprobs, axis=1) <= 0)
        greedy = asked[number].sampling.temperature == 0
        for token, logprob, ids, logprobs in zip(one.tokens, one.logprobs, *one.top, strict=True):
            assert ids[0] == token or not greedy
            if token in ids:
                np.testing.assert_allclose(logprobs[ids == token], logprob, atol=1e-5)


@pytest.mark.usefixtures("highest_precision")
def test_cancelled_samples_leave_their_places(engine, params, alone):
    """Before their prefill, while they wait, and while they decode; the others do not notice."""
    begun: set[int] = set()

    def cancelled(number: int):
        if number == 1:  # at once
            return lambda sample: True
        if number == 5:  # when it has shown tokens
            return lambda sample: 5 in begun
        if number == 7:  # while it waits for a place
            return lambda sample: 0 in begun
        return None

    asked = [
        one._replace(streams=True, cancelled=cancelled(one.tag)) for one in requests("greedy")[:9]
    ]
    asked[5] = longer(asked[5])
    groups = [group([(n, asked[n])], 1) for n in (0, 5, 1, 7, 2, 3, 4, 6, 8)]
    made = {}
    for one in engine.run(params, Listed(groups), 2, 64):
        begun.add(one.tag)
        if isinstance(one, Finished):
            made[one.tag] = one
    assert {tag for tag, one in made.items() if one.error == CANCELLED} == {1, 5, 7}
    for tag in (0, 2, 3, 4, 6, 8):
        assert made[tag].tokens.tolist() == alone["greedy"][tag, 0]


@pytest.mark.usefixtures("highest_precision")
def test_samples_spread_over_places(engine, params):
    """Five samples of each prompt over four places: what they get one after the other."""
    expected = run(engine, params, "sampled", 4, samples=5)
    asked = [one._replace(spreads=True) for one in requests("sampled", 5)]
    groups = [group([(number, asked[number])], 1) for number in range(9)]
    made = {
        (one.tag, one.sample): one.tokens.tolist()
        for one in engine.run(params, Listed(groups), 4, 16)
    }
    assert made == expected

"""Captions of a few clips of the evaluation data during training."""

import functools
from collections.abc import Callable, Iterator, Sequence

import jax

from ugc_jax.data import pipeline
from ugc_jax.data.batching import Buckets, collate, group
from ugc_jax.data.planning import DataConfig, parse_mixture
from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.data.records import RecordSource
from ugc_jax.generate.engine import Engine, Group, Listed, Request
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.sharding import round_up_rows
from ugc_jax.train.state import Setup, TrainState, model_params


class Sampler:
    """Captions the same prompts at every call; compiled once a bucket."""

    def __init__(
        self,
        prompts: Sequence[pipeline.RecordPrompt],
        setup: Setup,
        tokenizer: ChatTokenizer,
        sampling: SamplingConfig,
    ):
        self._prompts, self._tokenizer = prompts, tokenizer
        self._options = sampling.resolve()
        self._weights = jax.jit(functools.partial(model_params, setup=setup))
        self._engine = Engine(setup.model, setup.compute, setup.mesh)

    def __call__(self, state: TrainState, check: Callable[[], None]) -> list[dict[str, str | None]]:
        """Return {"clip", "reference", "caption"} of each prompt; all processes call it.

        check: called before each chunk of decode steps; may raise.
        """
        with jax.set_mesh(self._engine.mesh):
            params = self._weights(state)  # a second copy, not kept while training goes on
        rows = round_up_rows(self._engine.mesh, len(self._prompts))
        captions = {}
        for one in self._engine.run(
            params,
            Listed(self._groups(rows)),
            rows,
            self._options.max_new_tokens,
            tokens=max(len(prompt.example.tokens) for prompt in self._prompts),
            check=check,
        ):
            captions[one.tag] = self._tokenizer.decode(one.tokens.tolist()).strip()
        return [
            {"clip": prompt.entry.id, "reference": prompt.answer, "caption": captions[number]}
            for number, prompt in enumerate(self._prompts)
        ]

    def _groups(self, rows: int) -> Iterator[Group]:
        """Yield the prompts of each bucket; the request's tag is the number of the prompt."""
        numbered = [(number, prompt.example) for number, prompt in enumerate(self._prompts)]
        for key, members in group(numbered, rows, Buckets(), self._engine.config):
            numbers, examples = zip(*members, strict=True)
            requests = [Request(number, self._options, [number]) for number in numbers]
            batch = collate(examples, key, rows, self._engine.config)
            yield Group(batch, requests + [None] * (rows - len(requests)))


def make_sampler(
    data: DataConfig, count: int, sampling: SamplingConfig, setup: Setup, tokenizer: ChatTokenizer
) -> Sampler | None:
    """Return a Sampler of the first `count` clips of the evaluation data; None if there are none.

    Raises UserError for data that cannot be read.
    """
    if data.eval is None or count == 0:
        return None
    source = RecordSource(parse_mixture(data.eval)[0][0])
    numbers = range(min(count, len(source)))
    prompts = pipeline.prompts(source, numbers, tokenizer, setup.model)
    return Sampler(prompts, setup, tokenizer, sampling)

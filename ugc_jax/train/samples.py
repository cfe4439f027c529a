"""Captions of a few clips of the evaluation data during training."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from ugc_jax.data import pipeline
from ugc_jax.data.batching import Buckets, collate, group
from ugc_jax.data.planning import DataConfig, parse_mixture
from ugc_jax.data.prompt import ChatTokenizer
from ugc_jax.data.records import RecordSource
from ugc_jax.generate.engine import Engine
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
        self._options = sampling
        self._weights = jax.jit(functools.partial(model_params, setup=setup))
        self._engine = Engine(setup.model, setup.compute, setup.mesh)

    def __call__(self, state: TrainState, check: Callable[[], None]) -> list[dict[str, str | None]]:
        """Return {"clip", "reference", "caption"} of each prompt; all processes call it.

        check: called before each batch of prompts; may raise.
        """
        engine, config = self._engine, self._engine.config
        with jax.set_mesh(engine.mesh):
            params = self._weights(state)  # a second copy, not kept while training goes on
        batch_size = round_up_rows(engine.mesh, len(self._prompts))
        tagged = [(prompt, prompt.example) for prompt in self._prompts]
        rows = []
        for key, members in group(tagged, batch_size, Buckets(), config):
            check()
            prompts, examples = zip(*members, strict=True)
            batch = collate(examples, key, batch_size, config)
            key_ids = np.arange(batch_size, dtype=np.uint32)
            out = engine.generate(params, batch, self._options, key_ids)
            for prompt, tokens, length in zip(prompts, out.tokens, out.lengths, strict=False):
                caption = self._tokenizer.decode(tokens[:length].tolist()).strip()
                row = {"clip": prompt.entry.id, "reference": prompt.answer, "caption": caption}
                rows.append(row)
        return rows


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

"""Complete random prompts under random JSON schemas, and check every text that ended by itself.

    python launch/schema_check.py --count 500

Makes a tiny model with random weights, unless --checkpoint names another one, and serves it as
`ugc-jax serve` does. Each schema is compiled by generate/constraints.py and a completion is sampled
under it; one that ended with "stop" must be JSON and satisfy the schema by the library jsonschema.
Half as many prompts without a schema decode beside them, and their greedy tokens must be those of
each prompt alone. A schema depends only on --seed and its number. Then measures what prompts
without a schema lose by constrained ones beside them. Exit status 1 if a check fails.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import jsonschema

from ugc_jax.cli import set_up_logging
from ugc_jax.data.batching import bucket_of
from ugc_jax.data.example import build_example
from ugc_jax.data.reading import Prompt
from ugc_jax.generate.captioner import BUCKETS, Captioner
from ugc_jax.generate.live import Busy, Failure, GenerationOptions, Live, Piece
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.jobs import init

NEW_TOKENS, PLACES = 256, 32
LETTERS = 'abc_ é/"\\'


# ---- random schemas ------------------------------------------------------------------------------


def random_schema(rng: random.Random, depth: int = 3) -> dict:
    """Return a JSON schema of a kind that people write; most have short texts."""
    kinds = [_string, _integer, _number, _choice, _plain]
    if depth > 0:
        kinds += [_object, _object, _object, _array, _union, _reference]
    return rng.choice(kinds)(rng, depth - 1)


def _word(rng: random.Random) -> str:
    return "".join(rng.choices(LETTERS, k=rng.randint(1, 6)))


def _string(rng, _) -> dict:
    least = rng.randint(0, 3)
    forms = [
        dict(minLength=least, maxLength=least + rng.randint(0, 9)),
        dict(pattern=rng.choice(["^[a-z]{2,5}$", "^(yes|no|maybe)$", "^[0-9]+-[A-F]{2}$"])),
        dict(format=rng.choice(["date", "time", "date-time", "uuid", "ipv4"])),
    ]
    return {"type": "string"} | rng.choice(forms)


def _integer(rng, _) -> dict:
    least = rng.randint(-200, 200)
    forms = [
        dict(minimum=least, maximum=least + rng.randint(0, 1000)),
        dict(exclusiveMinimum=least, exclusiveMaximum=least + rng.randint(2, 99)),
        dict(multipleOf=rng.randint(1, 7), minimum=0, maximum=1000),
    ]
    return {"type": "integer"} | rng.choice(forms)


def _number(rng, _) -> dict:
    least = rng.randint(-20, 20) / 4
    return {"type": "number", "minimum": least, "maximum": least + rng.randint(1, 40)}


def _choice(rng, _) -> dict:
    values = [_word(rng), rng.randint(-5, 500), None, True, [1, _word(rng)], {"k": _word(rng)}, 0.5]
    if rng.random() < 0.3:
        return {"const": rng.choice(values)}
    return {"enum": rng.sample(values, rng.randint(1, 4))}


def _plain(rng, _) -> dict:
    return {"type": rng.choice(["boolean", "null", ["boolean", "null"]])}


def _object(rng, depth) -> dict:
    names = list(dict.fromkeys(_word(rng) for _ in range(rng.randint(0, 4))))
    schema = {
        "type": "object",
        "properties": {name: random_schema(rng, depth) for name in names},
        "required": [name for name in names if rng.random() < 0.7],
    }
    if rng.random() < 0.8:
        schema["additionalProperties"] = False
    elif rng.random() < 0.5:
        schema["additionalProperties"] = random_schema(rng, 0)
    return schema


def _array(rng, depth) -> dict:
    least = rng.randint(0, 2)
    schema = {"type": "array", "minItems": least, "maxItems": least + rng.randint(0, 3)}
    if rng.random() < 0.3:
        schema["prefixItems"] = [random_schema(rng, depth) for _ in range(rng.randint(1, 3))]
    return schema | {"items": random_schema(rng, depth)}


def _union(rng, depth) -> dict:
    return {"anyOf": [random_schema(rng, depth) for _ in range(rng.randint(1, 3))]}


def _reference(rng, depth) -> dict:
    name = rng.choice("xyz")
    return (
        {
            "$defs": {name: random_schema(rng, 0)},
            "type": "array",
            "items": {"$ref": f"#/$defs/{name}"},
            "maxItems": 3,
        }
        if depth == 2
        else random_schema(rng, depth)
    )  # `#` is the root


# ---- one server ----------------------------------------------------------------------------------


class Answer:
    """Gathers what is told of a request."""

    def __init__(self, others: threading.Semaphore | None = None):
        self.text, self.tokens, self.reason, self.failure = "", [], None, None
        self.over, self._others = threading.Event(), others

    def __call__(self, what: Piece | Failure):
        if isinstance(what, Failure):
            self.failure = what.reason
        else:
            self.text += what.text
            self.tokens += [token.id for token in what.tokens]
            self.reason = what.finish_reason
        if self.failure or self.reason:
            self.over.set()
            if self._others is not None:
                self._others.release()


def text_prompt(captioner: Captioner, text: str) -> Prompt:
    """Return the prompt of a question without a clip."""
    messages = [{"role": "user", "content": text}]
    example = build_example(messages, [], captioner.tokenizer, captioner.config)
    return Prompt(example, None, bucket_of(example, BUCKETS, captioner.config), 0.0, ())


def submit(
    live: Live, prompt: Prompt, asked: GenerationOptions, answer: Answer | None = None
) -> Answer:
    """Submit when there is room."""
    answer = answer or Answer()
    while True:
        try:
            live.submit(prompt, asked, answer)
            return answer
        except Busy:
            time.sleep(0.02)


class Figures(NamedTuple):
    """Counts of completions under a schema, by what became of them.

    cut: at the limit of tokens. wrong: of those that ended, which do not satisfy their schema.
    disturbed: completions without a schema that differ from those of the prompt alone.
    """

    stopped: int
    cut: int
    wrong: list[str]
    disturbed: int


def check(captioner: Captioner, count: int, seed: int = 0, new_tokens: int = NEW_TOKENS) -> Figures:
    """Complete prompts under `count` random schemas."""
    prompts = [text_prompt(captioner, "word " * n) for n in (1, 7, 60)]
    plain = GenerationOptions(SamplingConfig(max_new_tokens=24).resolve())
    live = Live(captioner, places=PLACES, new_tokens=new_tokens, waiting=2 * PLACES)
    try:
        alone = []
        for prompt in prompts:
            alone.append(submit(live, prompt, plain))
            alone[-1].over.wait()
        bound, others = [], []
        for number in range(count):
            schema = random_schema(random.Random(f"{seed} {number}"))
            how = dict(temperature=1.0, top_p=0.95) if number % 4 else dict(temperature=0.0)
            sampling = SamplingConfig(max_new_tokens=new_tokens, seed=number, **how).resolve()
            asked = GenerationOptions(sampling, schema=schema)
            bound.append((schema, submit(live, prompts[number % 3], asked)))
            if number % 2:
                others.append((number % 3, submit(live, prompts[number % 3], plain)))
    finally:
        live.close(600)
    wrong = []
    for schema, answer in bound:
        if answer.failure is not None:
            wrong.append(f"{json.dumps(schema)}: {answer.failure}")
        elif answer.reason == "stop":
            try:
                jsonschema.validate(json.loads(answer.text), schema)
            except (ValueError, jsonschema.ValidationError) as error:
                wrong.append(f"{json.dumps(schema)}: {answer.text!r}: {str(error).splitlines()[0]}")
    reasons = [answer.reason for _, answer in bound]
    disturbed = sum(answer.tokens != alone[which].tokens for which, answer in others)
    return Figures(reasons.count("stop"), reasons.count("length"), wrong, disturbed)


def speed(captioner: Captioner, seconds: float = 8.0, turns: int = 3) -> tuple[float, float]:
    """Return tokens/s of prompts without a schema in all places, alone and beside constrained ones.

    Medians of turns of so many seconds, one of each kind after the other, in one server whose
    places stay busy.
    """
    prompt, new = text_prompt(captioner, "word " * 30), 256
    live = Live(captioner, places=PLACES, new_tokens=new, waiting=8 * PLACES)
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 1000}
    over, beside, tokens = threading.Event(), threading.Event(), [0] * (PLACES + 16)

    def client(number: int, bound: bool):
        rng = random.Random(number)
        while not over.is_set():
            if bound and not beside.is_set():
                time.sleep(0.05)
                continue
            sampling = SamplingConfig(max_new_tokens=rng.randint(new // 4, new), temperature=1.0)
            answer, before = Answer(), 0
            asked = GenerationOptions(sampling.resolve(), schema=schema if bound else None)
            ticket = live.submit(prompt, asked, answer)
            while not (answer.over.wait(0.02) or over.is_set() or (bound and not beside.is_set())):
                now = 0 if bound else len(answer.tokens)
                tokens[number] += now - before
                before = now
            if not bound:
                tokens[number] += len(answer.tokens) - before
            live.cancel(ticket)

    def turn(bound: bool) -> float:
        (beside.set if bound else beside.clear)()
        time.sleep(seconds / 4)
        before, start = sum(tokens), time.perf_counter()
        time.sleep(seconds)
        return (sum(tokens) - before) / (time.perf_counter() - start)

    clients = [(number, number >= PLACES + 8) for number in range(len(tokens))]
    threads = [threading.Thread(target=client, args=one) for one in clients]
    try:
        for thread in threads:
            thread.start()
        turn(True)  # compiles
        pairs = [(turn(False), turn(True)) for _ in range(turns)]
    finally:
        over.set()
        for thread in threads:
            thread.join()
        live.close(60)
    return tuple(statistics.median(side) for side in zip(*pairs, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=500, help="schemas")
    parser.add_argument("--seed", type=int, default=0, help="of the schemas")
    parser.add_argument("--checkpoint", help="directory or hub id; none: tiny, random weights")
    args = parser.parse_args()
    set_up_logging()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = args.checkpoint
        if checkpoint is None:
            checkpoint = str(Path(folder) / "tiny")
            init.main(init.InitConfig(output=checkpoint), [])
        captioner = Captioner.from_pretrained(checkpoint)
        start = time.perf_counter()
        figures = check(captioner, args.count, args.seed)
        took = time.perf_counter() - start
        alone, beside = speed(captioner)
    for line in figures.wrong:
        print("wrong:", line)
    print(
        f"{args.count} schemas in {took:.0f} s: {figures.stopped} ended by themselves, of which "
        f"{len(figures.wrong)} wrong; {figures.cut} cut at {NEW_TOKENS} tokens; "
        f"{figures.disturbed} others disturbed"
    )
    print(
        f"without a schema: {alone:.0f} tokens/s alone, {beside:.0f} beside constrained prompts "
        f"({1 - beside / alone:.1%} less)"
    )
    return int(bool(figures.wrong or figures.disturbed))


if __name__ == "__main__":
    sys.exit(main())

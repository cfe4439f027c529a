"""What evidence costs, in prefills: python launch/evidence_cost.py CHECKPOINT CLIP [CLIP ...]

Of clips that are read and encoded already: the time to explain the model's captions of them, over
the time to prefill their prompts, in the same rows, turn by turn on the same devices. Also what the
encoders take, in the same unit. Compilation does not count.
"""

import argparse
import time
from collections.abc import Callable

import jax

from ugc_jax import Captioner
from ugc_jax.data.batching import Buckets, collate
from ugc_jax.data.reading import read_prompts
from ugc_jax.errors import UserError
from ugc_jax.generate import scoring
from ugc_jax.generate.engine import prefill_tokens
from ugc_jax.generate.evidence import WAYS, explain, token_spans
from ugc_jax.generate.settings import EngineConfig, SamplingConfig, leave_room
from ugc_jax.media.find import find_clips
from ugc_jax.media.presets import ClipSettings


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("clips", nargs="+", help="files, or folders of them")
    parser.add_argument("--new_tokens", type=int, default=128, help="most of a caption")
    parser.add_argument("--repeats", type=int, default=5, help="turns that are timed; the best one")
    parser.add_argument("--frames", type=int, help="of each clip")
    parser.add_argument("--min_pixels", type=int, help="of a frame; clips are enlarged to it")
    arguments = parser.parse_args()
    captioner = Captioner.from_pretrained(arguments.checkpoint)
    given = dict(frames=arguments.frames, min_pixels=arguments.min_pixels)
    sampling = SamplingConfig(max_new_tokens=arguments.new_tokens)
    clip, sampling = captioner.defaults.apply(ClipSettings(**given), sampling)
    clip = leave_room(clip, arguments.new_tokens, captioner.config)
    files = find_clips(arguments.clips)
    own = captioner.run(files, clip, sampling, EngineConfig())
    captions = {one.video: one.caption for one in own}
    how = captioner.tokenizer, captioner.config, Buckets(), EngineConfig()
    groups: dict[tuple, list] = {}
    for video, prompt in read_prompts(files, clip, *how):
        if isinstance(prompt, UserError):
            raise SystemExit(str(prompt))
        # Random weights write bytes that take more tokens as a text.
        ids = captioner.tokenizer.encode(captions[video])[: arguments.new_tokens]
        key = prompt.bucket, scoring.slots_of(len(ids))
        groups.setdefault(key, []).append((prompt.example, captioner.tokenizer.decode(ids), ids))
    total = dict.fromkeys(("prefill", "encode", "explain"), 0.0)
    for key, units in groups.items():
        most = max(1, prefill_tokens(captioner.engine.mesh) // (key[0].tokens + key[1]))
        for start in range(0, len(units), most):
            took = measure(captioner, *key, units[start : start + most], arguments.repeats)
            total = {name: value + took[name] for name, value in total.items()}
    device = jax.devices()[0].device_kind
    tokens = sum(len(example.tokens) for units in groups.values() for example, *_ in units)
    texts = sum(len(ids) for units in groups.values() for *_, ids in units)
    tokens, texts, seconds = (one / len(files) for one in (tokens, texts, total["prefill"]))
    print(
        f"{len(files)} clips on {device}: prompts of {tokens:.0f} tokens, captions of {texts:.0f} "
        f"(means); prefill {seconds:.4f} s a clip"
    )
    for name in ("explain", "encode"):
        print(f"{name:<8}{total[name] / total['prefill']:>6.2f} prefills")


def measure(captioner, bucket, size: int, units: list, repeats: int) -> dict[str, float]:
    """Return the seconds that some rows take: to prefill, to encode, to explain."""
    engine, params, config = captioner.engine, captioner.params, captioner.config
    batch = collate([example for example, *_ in units], bucket, len(units), config)
    media = jax.block_until_ready(engine.encode(params, batch))

    def explained():
        rows = scoring.text_rows(batch, [[ids] for *_, ids in units], size, config)
        ways = scoring.hidden_ways(rows.batch, WAYS, config)
        scores = engine.score(params, rows, ways, media)
        for b, (_, text, ids) in enumerate(units):
            spans = token_spans(ids, captioner.tokenizer)
            explain("", text, spans, scores[b, :, rows.places[b][0]])

    work: dict[str, Callable] = {
        "prefill": lambda: jax.block_until_ready(engine.prefill(params, batch, media)),
        "encode": lambda: jax.block_until_ready(engine.encode(params, batch)),
        "explain": explained,
    }
    best = dict.fromkeys(work, float("inf"))
    for turn in range(repeats + 1):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            if turn:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


if __name__ == "__main__":
    main()

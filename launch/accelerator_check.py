"""Measure one GPU, TPU or CPU with a model of random weights: see accelerator_check.sh.

The process that is started runs each section in a process of its own, one after the other, and ends
those that take longer than their share. A section appends a record to records.jsonl after each
measurement, and writes the tables again: docs/performance.md explains them.
"""

import argparse
import contextlib
import dataclasses
import datetime
import functools
import itertools
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# Section -> its share of the time. What one leaves over, the next ones may use.
SHARES = {"generation": 0.4, "attention": 0.1, "grpo": 0.2, "sft": 0.2, "transformers": 0.1}
REPEATS = 3  # of a measurement; their median counts
CALLS = 8  # of a copy or a product, under way together


@dataclasses.dataclass(frozen=True)
class Work:
    """What is measured. Clips: frames of height x width pixels and seconds of sound."""

    frames: int = 32
    height: int = 420
    width: int = 224
    seconds: float = 24.0
    batches: tuple[int, ...] = (1, 8, 32, 64)  # prompts that decode at a time
    new_tokens: int = 256  # room of a row
    grpo: tuple[int, int, int] = (4, 8, 256)  # prompts, completions of each, tokens of each
    sft: tuple[int, int] = (4, 4096)  # packed rows, tokens of each
    reference: tuple[int, ...] = (1, 8, 32)  # prompts of transformers
    reference_tokens: int = 32


WORK = {
    "3b": Work(),
    "mid": Work(frames=16, height=224, seconds=8.0, sft=(4, 2048)),
    "tiny": Work(
        frames=4, height=112, width=112, seconds=2.0, batches=(1, 4), grpo=(2, 2, 16), sft=(1, 256),
        reference=(2,),
    ),
}  # fmt: skip


# ---- records and tables --------------------------------------------------------------------------


class Records:
    """The results so far, on the disk."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._file = folder / "records.jsonl"

    def add(self, section: str, name: str, **figures):
        with self._file.open("a") as file:
            file.write(json.dumps({"section": section, "name": name, **figures}) + "\n")
        self.write_tables()

    def all(self) -> list[dict]:
        if not self._file.exists():
            return []
        return [json.loads(line) for line in self._file.read_text().splitlines()]

    def write_tables(self):
        """Write table.md and table.json, each at once."""
        records = self.all()
        for name, text in (
            ("table.md", markdown(records)),
            ("table.json", json.dumps(as_json(records), indent=2) + "\n"),
        ):
            new = self._folder / f".{name}.{os.getpid()}"
            new.write_text(text)
            new.replace(self._folder / name)


class Column(NamedTuple):
    """A column of a table: its heading, and its text for a record's figures."""

    heading: str
    text: Callable[[dict], str]


def _figure(name: str, form: str = "{:.2f}", scale: float = 1.0) -> Callable[[dict], str]:
    def text(record: dict) -> str:
        value = record.get(name)
        return "-" if value is None else form.format(value * scale)

    return text


_NAME = Column("", lambda record: record["name"])
_SECONDS = Column("s", _figure("seconds", "{:.3f}"))
_SHARE = Column("of the peak", _figure("share", "{:.0f} %", 100))
_COMPILED = Column("compiled in s", _figure("compile_seconds", "{:.0f}"))
# Section of the records -> (heading, columns).
TABLES = {
    "decode": (
        "Decoding",
        (
            _NAME,
            Column("ms a step", _figure("ms")),
            Column("tok/s", _figure("tokens_per_second", "{:,.0f}")),
            Column("GB a step", _figure("bytes", "{:.2f}", 1e-9)),
            Column("of the bound", _figure("share", "{:.0f} %", 100)),
            Column("kernels a step", _figure("kernels", "{:,.0f}")),
            Column("copies a step", _figure("copies", "{:,.0f}")),
            Column("ms of copies", _figure("copy_ms")),
            Column("counted in", lambda record: record.get("counted", "-")),
            _COMPILED,
        ),
    ),
    "prefill": (
        "Encoders and prefill",
        (_NAME, _SECONDS, Column("TFLOP", _figure("flops", "{:.2f}", 1e-12)), _SHARE, _COMPILED),
    ),
    "training": (
        "Training",
        (_NAME, _SECONDS, Column("TFLOP", _figure("flops", "{:.2f}", 1e-12)), _SHARE,
         Column("tok/s", _figure("tokens_per_second", "{:,.0f}")), _COMPILED),
    ),
    "attention": (
        "Attention in training",
        (_NAME, Column("ms forward", _figure("ms")), Column("ms with gradient", _figure("both_ms")),
         Column("error", _figure("error", "{:.4f}")),
         Column("of XLA's", _figure("times_xla", "{:.2f}")), _COMPILED),
    ),
    "transformers": (
        "transformers",
        (
            _NAME,
            Column("prefill s", _figure("prefill_seconds", "{:.3f}")),
            Column("ms a step", _figure("ms")),
            Column("tok/s", _figure("tokens_per_second", "{:,.0f}")),
        ),
    ),
}  # fmt: skip


def markdown(records: list[dict]) -> str:
    """Return the tables as text; a failure is a line of the section that it happened in."""
    facts = {record["name"]: record["value"] for record in records if record["section"] == "facts"}
    lines = ["# Accelerator check", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    for section, (heading, columns) in TABLES.items():
        rows = [record for record in records if record["section"] == section]
        good = [record for record in rows if "error" not in record]
        if not rows:
            continue
        lines += ["", f"## {heading}", ""]
        if good:
            lines.append("| " + " | ".join(column.heading for column in columns) + " |")
            lines.append("|---" * len(columns) + "|")
            for record in good:
                lines.append("| " + " | ".join(column.text(record) for column in columns) + " |")
        failures = [f"- {row['name']}: {row['error']}" for row in rows if "error" in row]
        lines += [""] * bool(good and failures) + failures
    return "\n".join(lines) + "\n"


def as_json(records: list[dict]) -> dict:
    """Return the records by section: {"facts": {name: value}, "decode": [figures, ...], ...}."""
    out: dict = {"facts": {}}
    for record in records:
        rest = {name: value for name, value in record.items() if name != "section"}
        if record["section"] == "facts":
            out["facts"][record["name"]] = record["value"]
        else:
            out.setdefault(record["section"], []).append(rest)
    return out


def reason(error: BaseException) -> str:
    """Return why a measurement failed, in one line."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower():
        return "out of memory"
    first = text.strip().partition("\n")[0]
    return f"{type(error).__name__}: {first[:200]}"


class Check:
    """What the sections share: the records, the time that is left, the work."""

    def __init__(self, records: Records, size: str, seconds: float):
        self.records, self.size, self.work = records, size, WORK[size]
        self._end, self._longest = time.monotonic() + seconds, 0.0

    @contextlib.contextmanager
    def measure(self, section: str, name: str) -> Iterator[dict]:
        """Record the figures that are put into the dict; a failure is recorded and not raised."""
        figures: dict = {}
        start = time.monotonic()
        try:
            yield figures
        except TimeoutError as error:
            self.records.add(section, name, error=str(error))
        except Exception as error:  # noqa: BLE001 - the other measurements go on
            self.records.add(section, name, error=reason(error))
        else:
            self.records.add(section, name, **figures)
        self._longest = max(self._longest, time.monotonic() - start)

    def require_time(self):
        """Raise TimeoutError where a measurement as long as the longest so far would be stopped."""
        if self._end - time.monotonic() < self._longest:
            raise TimeoutError("left out, as the time is up")

    def fact(self, name: str, value: str):
        self.records.add("facts", name, value=value)


def timed(function: Callable[[], object], repeats: int = REPEATS) -> tuple[float, float]:
    """Return (seconds of the first call beyond a later one, median of the later ones)."""
    import jax

    def once() -> float:
        start = time.perf_counter()
        jax.block_until_ready(function())
        return time.perf_counter() - start

    first, seconds = once(), statistics.median(once() for _ in range(repeats))
    return max(0.0, first - seconds), seconds


# ---- the device and the model --------------------------------------------------------------------


def measured_bandwidth(size: int) -> float:
    """Return bytes a second of reading and writing an array of `size` bytes."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones(size // 4, jnp.float32)
    negate = jax.jit(lambda x: -x)

    def calls(x=x):  # several under way, as a call takes about as long to begin
        for _ in range(CALLS):
            x = negate(x)
        return x

    return 2 * CALLS * x.nbytes / timed(calls)[1]


def measured_flops(side: int) -> float:
    """Return operations a second of a product of bfloat16 matrices, side x side."""
    import jax
    import jax.numpy as jnp

    x = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16)
    product = jax.jit(lambda x: x @ x)

    def calls():
        return [product(x) for _ in range(CALLS)]

    return 2 * CALLS * side**3 / timed(calls)[1]


class Limits(NamedTuple):
    """bandwidth: bytes a second. flops: bfloat16 operations a second."""

    bandwidth: float
    flops: float


def limits(device, check: Check, record: bool) -> Limits:
    """Return what shares are of: the data sheet's figures of a known card, else measured ones."""
    from ugc_jax.plan.cards import card_of

    card = card_of(device.device_kind)
    if card is not None and not record:
        return Limits(card.bandwidth, card.flops)
    size, side = (1 << 26, 1024) if device.platform == "cpu" else (1 << 30, 8192)
    own = Limits(measured_bandwidth(size), measured_flops(side))

    def text(bandwidth: float, flops: float) -> str:
        return f"{bandwidth / 1e9:,.0f} GB/s, {flops / 1e12:,.2f} TFLOP/s in bfloat16"

    if record:
        check.fact("measured", f"{text(*own)}, by a copy and a product")
        if card is None:
            source = "as measured, for this device is not in the table of cards"
        else:
            source = f"{text(card.bandwidth, card.flops)}, by the data sheet of {card.name}"
        check.fact("bound and peak", source)
    return Limits(card.bandwidth, card.flops) if card is not None else own


def driver(device) -> str:
    """Return the version of the device's driver, or of its runtime."""
    if device.platform == "gpu" and shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
            if done.returncode == 0 and done.stdout.strip():
                return done.stdout.split()[0]
    return " ".join(device.client.platform_version.split())[:80]


def random_params(config, dtype: str, stacked: bool, seed: int = 0) -> dict:
    """Return random weights of the thinker, made on the default device leaf by leaf.

    As `hf.random_weights.random_tensor` they keep activations at their size, but are uniform.
    """
    import jax
    import jax.numpy as jnp

    from ugc_jax.models.params import build_tree, leaves
    from ugc_jax.models.qwen2_5_omni import thinker
    from ugc_jax.models.qwen2_5_omni.names import LOOKED_UP

    @functools.partial(jax.jit, static_argnames=("shape", "layers"))
    def draw(key, deviation, shape: tuple[int, ...], layers: int):
        def one(key):
            x = jax.random.uniform(key, shape, jnp.float32, -1, 1)
            return (x * deviation * 3**0.5).astype(dtype)

        # A layer at a time, for the memory of the random numbers.
        return jax.lax.map(one, jax.random.split(key, layers)) if layers else one(key)

    arrays = {}
    for number, leaf in enumerate(leaves(thinker.declare(config), stacked)):
        tensor = leaf.tensors[0]
        kind, inputs = tensor.path[-1], math.prod(tensor.shape[1:])
        if kind == "weight" and len(tensor.shape) == 1:
            arrays[leaf.path] = jnp.ones(leaf.shape, dtype)
            continue
        small = kind == "bias" or tensor.name in LOOKED_UP
        key = jax.random.fold_in(jax.random.key(seed, impl="rbg"), number)
        layers = leaf.shape[0] if leaf.is_stacked else 0
        deviation = 0.02 if small else inputs**-0.5
        arrays[leaf.path] = draw(key, jnp.float32(deviation), tensor.shape, layers)
    return build_tree(arrays.items())


def model_of(check: Check, device, **changes):
    """Return (config, compute) of the size, in bfloat16 and with the platform's attention."""
    from ugc_jax.generate.captioner import CHUNK
    from ugc_jax.models.compute import ComputeConfig
    from ugc_jax.models.qwen2_5_omni.config import SIZES

    config = SIZES[check.size]()
    compute = ComputeConfig(dtype="bfloat16", **changes)
    return config, compute.resolve(device, config.text.head_dim, CHUNK[device.platform])


def prompts_of(check: Check, config, rows: int) -> tuple:
    """Return (examples, their batch on the host) of clips of noise."""
    from ugc_jax.data.batching import Buckets, bucket_of, collate
    from ugc_jax.generate.benchmark import Workload, examples

    work = check.work
    clip = Workload(
        batch_size=1, frames=work.frames, height=work.height, width=work.width, seconds=work.seconds
    )
    prompts = examples(clip, config) * rows
    key = bucket_of(prompts[0], Buckets(), config)
    return prompts, collate(prompts, key, rows, config)


# ---- sections ------------------------------------------------------------------------------------


def generation(check: Check):
    """Measure encoders, prefill and decoding, through the engine's programs."""
    import jax

    from ugc_jax.generate.engine import Engine, prefill_tokens
    from ugc_jax.models.qwen2_5_omni import thinker

    device = jax.devices()[0]
    check.fact("card", f"{device.device_kind} ({len(jax.devices())} in this host, one is used)")
    check.fact("driver", driver(device))
    check.fact("jax", f"{jax.__version__}, Python {sys.version.split()[0]}")
    check.fact("date", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"))
    bounds = limits(device, check, record=True)
    config, compute = model_of(check, device)
    how = f"{compute.dtype}, attention {compute.attention}"
    check.fact("model", f"{check.size}, random weights, {how}")
    # As Captioner.from_pretrained.
    params = random_params(config, compute.dtype, stacked=device.platform != "cpu")
    params = thinker.for_decoding(params, device.platform)
    engine = Engine(config, compute)
    _, one = prompts_of(check, config, 1)
    tokens = one.tokens.shape[1]
    check.fact("prompt", f"{int((one.segment_ids > 0).sum())} tokens, {tokens} with padding")

    encoders_and_prefill(check, engine, params, bounds, max(1, prefill_tokens(None) // tokens))
    prefilled = jax.block_until_ready(engine.prefill(params, jax.device_put(one)))
    for size in check.work.batches:
        with check.measure("decode", f"B = {size}") as figures:
            check.require_time()
            figures |= decoding(engine, params, one, prefilled, size, check.work, bounds)


def encoders_and_prefill(check: Check, engine, params: dict, bounds: Limits, rows: int):
    """Measure each encoder and the decoder's prefill on `rows` clips, as the engine takes them."""
    import jax

    from ugc_jax.generate.engine import Engine
    from ugc_jax.plan.flops import program_flops

    config = engine.config
    batch = jax.device_put(prompts_of(check, config, rows)[1])
    # Attention counts as XLA computes it, as in MFU.
    counted = Engine(config, dataclasses.replace(engine.compute, attention="xla", slab=0))
    measured: list[tuple[float, float]] = []  # operations, seconds

    def one(name: str, run: Callable[[], object], program: Callable) -> None:
        with check.measure("prefill", f"{name}, {rows} clips") as figures:
            check.require_time()
            flops = program_flops(program(), config.costly_share)
            compiled, seconds = timed(run)
            share = flops / seconds / bounds.flops
            figures |= dict(seconds=seconds, flops=flops, share=share, compile_seconds=compiled)
            measured.append((flops, seconds))

    for name, encode in engine._encoders.items():
        media = batch.media[name]
        program = functools.partial(counted._encoders[name].trace, params, *media)
        one(name, functools.partial(encode, params, *media), program)
    with check.measure("prefill", f"together, {rows} clips") as figures:
        encoded = engine.encode(params, batch)
        x = jax.eval_shape(engine._embed, params, batch.tokens, batch.splice, encoded)
        places = batch.positions, batch.segment_ids
        one(
            "prefill",
            lambda: engine.prefill(params, batch, encoded),
            lambda: counted._prefill.trace(params, x, *places),
        )
        if len(measured) < 3:
            raise RuntimeError("one of them was not measured")
        flops, seconds = map(sum, zip(*measured, strict=True))
        figures |= dict(seconds=seconds, flops=flops, share=flops / seconds / bounds.flops)


def decoding(engine, params, prompt, prefilled, size: int, work: Work, bounds: Limits) -> dict:
    """Return the figures of decoding `size` prompts at a time, as `Engine.run` does.

    prompt, prefilled: of one prompt, which is put into every place. A chunk of steps is a program,
    after which the host looks at the rows.
    """
    import jax
    import numpy as np

    from ugc_jax.generate import decode, sampling
    from ugc_jax.generate.engine import (
        _is_stacked,
        _prompt_tokens,
        chunk_of,
        new_tokens_bucket,
    )
    from ugc_jax.plan.traffic import loop_traffic, step_bytes

    mode = sampling.Mode(greedy=True, truncates=False, penalizes=False)
    state = engine._empty(
        places=size, samples=1, tokens=_prompt_tokens(prompt.tokens.shape[1]),
        new_tokens=new_tokens_bucket(work.new_tokens), penalizes=False, stacked=_is_stacked(params),
    )  # fmt: skip
    arrays = jax.device_put((prompt.tokens, prompt.segment_ids, prompt.next_position))
    for place in range(size):
        where = np.array([place], np.int32)
        state = engine._insert(state, prefilled.cache, where, *arrays)
    begun = decode.no_rows(size)
    begun.which[:], begun.rows.limit[:] = True, work.new_tokens
    begun.first.token[:] = np.arange(size) % engine.config.tokens.pad_token_id
    starts = [begun, decode.no_rows(size)]
    made, how = [0], chunk_of(None, size)
    # All chunks together have room, and the first one more.
    chunks_each = max(1, (work.new_tokens - 1) // int(how.steps) // REPEATS)

    def chunk() -> int:
        """Make one chunk; returns its steps."""
        nonlocal state
        state = engine._advance(params, state, starts[0], how, mode=mode)
        starts[0] = starts[1]
        _, counts = jax.device_get((state.done, state.count))
        before, made[0] = made[0], int(counts.max())
        return made[0] - max(before, 1)

    def chunks() -> tuple[float, int]:
        start, steps = time.perf_counter(), 0
        for _ in range(chunks_each):
            steps += chunk()
        return time.perf_counter() - start, steps

    start = time.perf_counter()
    chunk()
    first = time.perf_counter() - start
    seconds = statistics.median(
        took / steps for took, steps in (chunks() for _ in range(REPEATS)) if steps
    )
    # Of the tokens in use: on average, those of the middle of the measurement.
    N, T = state.tokens.shape[1], _prompt_tokens(prompt.tokens.shape[1])
    used = min(1.0, (made[0] - how.steps * chunks_each * REPEATS / 2) / N)
    length = int((prompt.segment_ids > 0).sum())
    read = step_bytes(params, state, length / T, used)
    share = read / bounds.bandwidth / seconds
    figures = dict(
        ms=1e3 * seconds, tokens_per_second=size / seconds, bytes=read, share=share,
        compile_seconds=max(0.0, first - how.steps * seconds),
    )  # fmt: skip
    try:  # the text of the same program, from the cache of this run
        program = engine._advance.lower(params, state, starts[0], how, mode=mode)
        traffic = loop_traffic(program.compile().as_text())
        figures |= dict(
            kernels=traffic.kernels - traffic.copies, copies=traffic.copies, counted="the program",
            program_bytes=traffic.bytes,
        )  # fmt: skip
        figures |= profiled(chunk)
    except Exception as error:  # noqa: BLE001 - the figures above are worth having without
        figures["not_counted"] = reason(error)
    return figures


def profiled(chunk: Callable[[], int]) -> dict:
    """Return kernels and copies of a step from a profile of a chunk; {} if it has no events."""
    import jax

    from ugc_jax.plan.profile import activity, device_events, read_profile

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            steps = chunk()
        profile = read_profile(folder)
        found = None if profile is None else activity(device_events(profile))
    if not steps or found is None or not found.kernels:
        return {}
    largest = [
        dict(name=name, count=count / steps, ms=1e3 * seconds / steps)
        for name, count, seconds in found.largest
    ]
    return dict(
        kernels=found.kernels / steps, copies=found.copies / steps,
        transfers=found.transfers / steps, copy_ms=1e3 * found.copy_seconds / steps,
        busy_ms=1e3 * found.busy_seconds / steps, largest=largest, counted="a profile",
    )  # fmt: skip


def attentions(check: Check) -> tuple[str, ...]:
    """Return the attention kernels that training is measured with, the usual one first.

    A GPU may have two: our own, and cuDNN's, which reads a mask of tokens x tokens.
    """
    import jax

    usual = model_of(check, jax.devices()[0])[1].attention
    return (usual, "cudnn") if usual == "flash" else (usual,)


def attention(check: Check):
    """Compare the training's attention kernels with plain XLA, and time them.

    Packed rows of three examples and padding; rows of a shared prompt and its completions.
    """
    import numpy as np

    rows, tokens = check.work.sft
    count, samples, new_tokens = check.work.grpo
    prompt = tokens // 2
    packed = np.repeat([1, 2, 3], [prompt, tokens // 4, tokens // 5])
    packed = np.pad(packed, (0, tokens - len(packed)))
    compare_attention(check, f"{rows} packed rows of {tokens}", np.tile(packed, (rows, 1)), False)
    shared = np.repeat(np.arange(samples + 1) + 1, [prompt] + [new_tokens] * samples)
    name = f"{count} prompts of {prompt} with {samples} x {new_tokens}"
    compare_attention(check, name, np.tile(shared, (count, 1)), True)


def compare_attention(check: Check, name: str, segments_BT, shared_prompt: bool):
    """Record the error and the time of each kernel, forward and with the gradient, for such rows.

    The error is the largest of the result's and the three gradients', of the first row in bfloat16
    against plain XLA in float32: a kernel is wrong where it is several times that of plain XLA.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from ugc_jax.models.attention import attention as plain_attention
    from ugc_jax.models.attention import causal_attention

    text = model_of(check, jax.devices()[0])[0].text
    N, K = text.num_attention_heads, text.num_key_value_heads
    segments_BT = segments_BT.astype(np.int32)
    arrays = [
        jax.random.normal(key, (*segments_BT.shape, heads, text.head_dim), jnp.bfloat16)
        for key, heads in zip(jax.random.split(jax.random.key(0), 4), (N, K, K, N), strict=True)
    ]

    def programs(kernel: str | None, segments_BT, dtype=jnp.bfloat16):
        """kernel: None is plain XLA in one block, which compiles fast and is compared with."""
        live = (segments_BT > 0)[..., None, None]

        def forward(*qkv):
            qkv = (x.astype(dtype) for x in qkv)
            if kernel is None:
                how = dict(causal=True, shared_prompt=shared_prompt, block=segments_BT.shape[1])
                out = plain_attention(*qkv, segments_BT, **how)
            else:
                out = causal_attention(*qkv, segments_BT, kernel, shared_prompt)
            return jnp.where(live, out, 0)

        def both(*qkv, slope):
            out, pull = jax.vjp(forward, *qkv)
            return out, *pull(slope.astype(dtype))

        return jax.jit(forward), jax.jit(both)

    def first_row(kernel: str | None, dtype=jnp.bfloat16) -> list:
        *qkv, slope = (x[:1] for x in arrays)
        out = programs(kernel, segments_BT[:1], dtype)[1](*qkv, slope=slope)
        return [np.asarray(x, np.float32) for x in out]

    def error(kernel: str | None) -> float:
        pairs = zip(first_row(kernel), right, strict=True)
        return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)

    with check.measure("attention", f"xla, {name}") as figures:
        with jax.default_matmul_precision("highest"):
            right = first_row(None, jnp.float32)
        plain = error(None)
        figures |= dict(error=plain)
    for kernel in attentions(check):
        with check.measure("attention", f"{kernel}, {name}") as figures:
            check.require_time()
            *qkv, slope = arrays
            forward, both = programs(kernel, segments_BT)
            compiled, seconds = timed(functools.partial(forward, *qkv))
            more, both_seconds = timed(functools.partial(both, *qkv, slope=slope))
            far = error(kernel)
            figures |= dict(
                ms=1e3 * seconds, both_ms=1e3 * both_seconds, error=far, times_xla=far / plain,
                compile_seconds=compiled + more,
            )  # fmt: skip


class Training(NamedTuple):
    """What a training step is measured with. full: the decoder learns, not an adapter."""

    attention: str
    full: bool
    remat: str

    def __str__(self) -> str:
        return f"{'full' if self.full else 'LoRA'}, {self.attention}, remat {self.remat}"


def trainings(check: Check) -> Iterator[Training]:
    """Yield what to measure: an adapter and the whole decoder, then the adapter otherwise.

    Otherwise: on accelerators, without recomputation, which compute.remat=auto takes where it fits;
    and with other attention.
    """
    import jax

    usual, *others = attentions(check)
    yield Training(usual, False, "dots")
    yield Training(usual, True, "dots")
    if jax.devices()[0].platform != "cpu":
        yield Training(usual, False, "none")
    yield from (Training(kernel, False, "dots") for kernel in others)


def measure_training(check: Check, measure: Callable[[Check, Training], None]):
    """Measure each of `trainings`; where memory runs out with remat=dots, again with full."""
    for training in trainings(check):
        before = len(check.records.all())
        measure(check, training)
        out_of_memory = [
            one for one in check.records.all()[before:] if one.get("error") == "out of memory"
        ]
        if out_of_memory and training.remat == "dots":
            measure(check, training._replace(remat="full"))


def training_setup(check: Check, training: Training):
    """Return (setup, limits) on one device, of configs/sft_3b.py or its adapter."""
    import jax

    from ugc_jax import sharding
    from ugc_jax.models.lora import LoraConfig
    from ugc_jax.train.state import Setup, Trainable

    device = jax.devices()[0]
    how = dict(remat=training.remat, attention=training.attention)
    config, compute = model_of(check, device, **how)
    adapter = dict(
        trainable=Trainable(decoder=False, embeddings=False), lora=LoraConfig(rank=64, alpha=128.0)
    )
    setup = Setup(
        config,
        sharding.make_mesh(1, 1, 1, [device]),
        compute=compute,
        **({} if training.full else adapter),
    )
    return setup, limits(device, check, record=False)


def grpo(check: Check):
    """Measure GRPO steps: sampling, and the update."""
    measure_training(check, grpo_step)


def grpo_step(check: Check, training: Training):
    """Measure a GRPO step: sampling, and the update."""
    import jax
    import numpy as np

    from ugc_jax.plan.flops import step_flops
    from ugc_jax.rl.advantages import token_weights
    from ugc_jax.rl.objective import policy_step
    from ugc_jax.rl.options import GrpoOptions
    from ugc_jax.rl.rollout import Rollout, RolloutConfig
    from ugc_jax.rl.rows import policy_rows
    from ugc_jax.train.state import create_state
    from ugc_jax.train.step import jit_step

    setup, bounds = training_setup(check, training)
    count, samples, new_tokens = check.work.grpo
    parts = f"GRPO, {count} prompts x {samples} x {new_tokens}, {training}"
    with check.measure("training", f"{parts}: all") as figures:
        check.require_time()
        options = GrpoOptions(beta=0.0)
        sampling = dataclasses.replace(RolloutConfig().sampling, max_new_tokens=new_tokens)
        rollout = Rollout(setup, RolloutConfig(samples=samples, sampling=sampling))
        policy = functools.partial(policy_step, options=options, samples=samples)
        update = jit_step(policy, setup)
        _, prompts = prompts_of(check, setup.model, count)
        advantages = np.tile(np.linspace(-1, 1, samples, dtype=np.float32), (count, 1))
        params = random_params(setup.model, setup.compute.dtype, stacked=True)
        held = [create_state(params, setup)]
        del params
        flops = 0.0

        def step(draw: int) -> tuple[float, float, int]:
            nonlocal flops
            start = time.perf_counter()
            rollout.load(held[0])
            generated, media = rollout.join(list(rollout.sample(prompts, draw)))
            rollout.drop()
            sampled = time.perf_counter()
            weights = token_weights(generated.lengths, options, new_tokens)
            size = samples * new_tokens  # the most, whatever was sampled: one program
            rows = policy_rows(
                prompts, generated, advantages, weights, size, setup.model, keep_media=False
            )._replace(media=media)
            with jax.set_mesh(setup.mesh):
                held[0], metrics = update(held[0], rows)
            jax.block_until_ready(metrics)
            ended = time.perf_counter()
            flops = flops or step_flops(setup, rows, step=policy)
            return sampled - start, ended - sampled, int(generated.lengths.sum())

        first = step(0)
        runs = [step(draw) for draw in (1, 2)]
        sample, learn, tokens = (statistics.median(one) for one in zip(*runs, strict=True))
        figures |= dict(
            seconds=sample + learn, tokens_per_second=tokens / (sample + learn),
            compile_seconds=max(0.0, sum(first[:2]) - sample - learn),
        )  # fmt: skip
        check.records.add(
            "training", f"{parts}: sampling", seconds=sample, tokens_per_second=tokens / sample
        )
        share = flops / learn / bounds.flops
        check.records.add("training", f"{parts}: update", seconds=learn, flops=flops, share=share)


def sft(check: Check):
    """Measure SFT steps of packed rows."""
    measure_training(check, sft_step)


def sft_step(check: Check, training: Training):
    """Measure an SFT step of packed rows."""
    import jax

    from ugc_jax.data.batching import Buckets, bucket_of, collate_rows
    from ugc_jax.generate.benchmark import Workload, examples
    from ugc_jax.plan.flops import step_flops
    from ugc_jax.train.state import create_state
    from ugc_jax.train.step import jit_step, train_step

    setup, bounds = training_setup(check, training)
    rows, tokens = check.work.sft
    name = f"SFT, {rows} packed rows of {tokens}, {training}"
    with check.measure("training", name) as figures:
        check.require_time()
        work, model = check.work, setup.model
        clip = dict(batch_size=1, height=work.height, width=work.width)
        long, short = (
            examples(Workload(**clip, frames=frames, seconds=seconds), model)[0]
            for frames, seconds in (
                (work.frames, work.seconds), (work.frames // 2, work.seconds / 2)
            )
        )  # fmt: skip
        packed = []
        for example in (long, short):
            target = example.target.copy()
            target[-16:] = True  # of the text behind the clip
            packed.append(example._replace(target=target))
        keys = [bucket_of(example, Buckets(), model) for example in packed]
        key = keys[0].joined(keys[1])._replace(tokens=tokens)
        batch = jax.device_put(collate_rows([packed] * rows, key, rows, model))
        params = random_params(model, setup.compute.dtype, stacked=True)
        held = [create_state(params, setup)]
        del params
        update = jit_step(train_step, setup)

        def step():
            with jax.set_mesh(setup.mesh):
                held[0], metrics = update(held[0], batch)
            return metrics

        compiled, seconds = timed(step)
        flops = step_flops(setup, batch)
        used = int((batch.segment_ids > 0).sum())
        figures |= dict(
            seconds=seconds, flops=flops, share=flops / seconds / bounds.flops,
            tokens_per_second=used / seconds, compile_seconds=compiled,
        )  # fmt: skip


def transformers(check: Check):
    """Measure transformers on the same prompts and sizes, with random weights of its own."""
    import importlib.util

    if not all(map(importlib.util.find_spec, ("torch", "transformers"))):
        check.records.add(
            "transformers", "left out", error="torch or transformers is not installed"
        )
        return
    import torch
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration as Thinker

    from ugc_jax.generate.benchmark import SECONDS_PER_GRID
    from ugc_jax.hf.reference import reference_inputs
    from ugc_jax.models.qwen2_5_omni.config import SIZES
    from ugc_jax.models.qwen2_5_omni.hf_config import to_hf

    platform = next(
        (one["value"] for one in check.records.all() if one["name"] == "platform"), "cpu"
    )
    device = {"cpu": "cpu", "gpu": "cuda"}.get(platform)
    if device is None or (device == "cuda" and not torch.cuda.is_available()):
        check.records.add("transformers", "left out", error=f"torch sees no {platform.upper()}")
        return
    config = SIZES[check.size]()
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    with torch.device(device):
        hf_config = Thinker.config_class(**to_hf(config, "bfloat16"))
        model = Thinker._from_config(
            hf_config, dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()
    model.generation_config.pad_token_id = config.tokens.pad_token_id
    name = f"transformers {sys.modules['transformers'].__version__}, torch {torch.__version__}"
    for size in check.work.reference:
        with check.measure("transformers", f"{name}, B = {size}") as figures:
            check.require_time()
            prompts, _ = prompts_of(check, config, size)
            seconds = [SECONDS_PER_GRID] * size
            inputs = {
                key: value.to(device, torch.bfloat16 if value.is_floating_point() else None)
                if isinstance(value, torch.Tensor) else value
                for key, value in reference_inputs(prompts, config, seconds, True).items()
            }  # fmt: skip

            def generate(count: int, inputs=inputs) -> float:
                wait()
                start = time.perf_counter()
                with torch.inference_mode():
                    model.generate(
                        **inputs, max_new_tokens=count, min_new_tokens=count, do_sample=False
                    )
                wait()
                return time.perf_counter() - start

            generate(2)
            count = check.work.reference_tokens
            prefill, whole = (
                statistics.median(generate(n) for _ in range(REPEATS)) for n in (1, count)
            )
            step = (whole - prefill) / (count - 1)
            figures |= dict(prefill_seconds=prefill, ms=1e3 * step, tokens_per_second=size / step)


SECTIONS = {
    "generation": generation, "attention": attention, "grpo": grpo, "sft": sft,
    "transformers": transformers,
}  # fmt: skip


# ---- processes -----------------------------------------------------------------------------------


def run_section(check: Check, name: str):
    """Run a section in this process, with a compilation cache of its own."""
    if name != "transformers":
        import jax

        if jax.config.jax_compilation_cache_dir is None:
            jax.config.update("jax_compilation_cache_dir", os.environ["CHECK_CACHE"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        if name == "generation":
            check.fact("platform", jax.devices()[0].platform)
    SECTIONS[name](check)


def run_all(arguments: argparse.Namespace) -> int:
    """Run each section in a process, within its share of the time; exit status 0 if all ran."""
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "records.jsonl").unlink(missing_ok=True)
    records = Records(folder)
    records.write_tables()
    failed, start, total = False, time.monotonic(), 60 * arguments.minutes - 5
    ends = deadlines(arguments.sections, total)
    with tempfile.TemporaryDirectory() as cache:
        for name, end in ends.items():
            left = start + end - time.monotonic()
            print(f"[{time.monotonic() - start:4.0f} s] {name}", flush=True)
            failed |= not _child(arguments, name, left, records, cache)
    print((folder / "table.md").read_text())
    print(f"{folder / 'table.md'}, {folder / 'table.json'}")
    return int(failed)


def deadlines(sections: list[str], seconds: float) -> dict[str, float]:
    """Return when each section must have ended, in seconds from the start."""
    chosen = {name: share for name, share in SHARES.items() if name in sections}
    ends = itertools.accumulate(chosen.values())
    return {
        name: seconds * end / sum(chosen.values()) for name, end in zip(chosen, ends, strict=True)
    }


def _child(arguments, name: str, seconds: float, records: Records, cache: str) -> bool:
    """Run one section; returns whether it came to its end."""
    command = [
        sys.executable, __file__, "--section", name, "--size", arguments.size,
        "--seconds", str(seconds), "--output", str(arguments.output),
    ]  # fmt: skip
    env = {"CHECK_CACHE": cache, "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"} | dict(os.environ)
    if name == "transformers":
        env["JAX_PLATFORMS"] = "cpu"  # the device's memory is torch's
    process = subprocess.Popen(command, env=env, start_new_session=True)
    try:
        status = process.wait(timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        text = f"stopped after {seconds:.0f} s, its share of the time"
        records.add(_table(name), name, error=text)
        return False
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if status:
        text = f"ended with status {status}; its last lines are above"
        records.add(_table(name), name, error=text)
    return status == 0


def _table(section: str) -> str:
    own = {"generation": "decode", "attention": "attention", "transformers": "transformers"}
    return own.get(section, "training")


def main() -> int:
    """Exit status 0 if every section came to its end, else 1."""
    parser = argparse.ArgumentParser(
        description="measure one accelerator with random weights", allow_abbrev=False
    )
    parser.add_argument("--size", choices=WORK, default="3b", help="of the model")
    parser.add_argument("--minutes", type=float, default=8.0, help="that it may take in all")
    parser.add_argument("--output", type=Path, default=Path("runs/accelerator_check"))
    parser.add_argument(
        "--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="what is measured"
    )
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.section is None:
        return run_all(arguments)
    check = Check(Records(arguments.output), arguments.size, arguments.seconds)
    run_section(check, arguments.section)
    return 0


if __name__ == "__main__":
    sys.exit(main())

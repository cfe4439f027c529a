"""The figures of README.md and docs/ are those of docs/figures, which commands wrote or printed.

Each file there has a function here of its name: content -> {page: texts that the page must have}.
In a page, line breaks are as spaces.
"""

import json
import re
import runpy
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs/figures"
# tests/plan/test_figures.py compares those of plans.
FILES = sorted(path for path in FOLDER.iterdir() if path.name not in ("README.txt", "plans.json"))


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def rounded(text: str, step: str) -> str:
    """A printed number, rounded half up to the places of `step`, such as 0.1."""
    return f"{Decimal(text).quantize(Decimal(step), ROUND_HALF_UP)}"


def quickstart(of: dict) -> dict[str, list[str]]:
    """`bash launch/quickstart.sh`: runs/quickstart/summary.json."""
    table = runpy.run_path(str(ROOT / "launch/summary.py"))["table"](of["accuracy"])
    rewards = "".join(f"{reward:>12.3f}" for reward in of["reward"].values())
    return {"docs/quickstart.md": [*table.splitlines(), f"{'reward':<14}{rewards}"]}


def evidence(of: dict) -> dict[str, list[str]]:
    """`python launch/evidence_check.py --output` of five seeds of the quickstart."""
    lines = []
    for name, values in of["sft"]["accuracy"].items():
        after = of["grpo"]["accuracy"][name]
        cells = [f"{100 * x:.1f} → {100 * y:.1f}" for x, y in zip(values, after, strict=True)]
        lines.append(f"| {' | '.join([name, *cells])} |")
    pairs = zip(of["sft"]["auroc"], of["grpo"]["auroc"], strict=True)
    cells = [f"{x:.3f} → {y:.3f}" for x, y in pairs]
    return {"docs/evidence.md": [*lines, f"| {' | '.join(cells)} |"]}


def h100_generation(of: dict) -> dict[str, list[str]]:
    """`bash launch/accelerator_check.sh --sections generation`: table.json."""
    copy, product = re.match(r"([\d,]+) GB/s, ([\d.]+) TFLOP/s", of["facts"]["measured"]).groups()
    return {
        "docs/performance.md": [
            *decode_rows(of),
            *prefill_rows(of),
            f"driver {of['facts']['driver']}, jax {of['facts']['jax']}",
            "a copy and a product of matrices reached "
            f"{copy} GB/s and {rounded(product, '1')} TFLOP/s",
        ]
    }


def decode_rows(of: dict) -> list[str]:
    return [
        f"| {one['name']} | {one['ms']:.2f} | {one['tokens_per_second']:,.0f} |"
        f" {one['bytes'] / 1e9:.2f} | {percent(one['share'])} | {one['kernels']:.0f} |"
        f" {one['copies']:.0f} | {one['copy_ms']:.2f} | {one['compile_seconds']:.0f} |"
        for one in of["decode"]
    ]


def prefill_rows(of: dict) -> list[str]:
    return [
        f"| {one['name']} | {one['seconds']:.3f} | {one['flops'] / 1e12:.2f} |"
        f" {percent(one['share'])} |"
        f" {'-' if 'together' in one['name'] else format(one['compile_seconds'], '.0f')} |"
        for one in of["prefill"]
    ]


def h200(of: dict) -> dict[str, list[str]]:
    """Sections of `bash launch/accelerator_check.sh`, and `ugc-jax caption` of 32 clips."""

    def text(one: dict, key: str, form: str, scale: float = 1.0) -> str:
        return format(one[key] * scale, form) if key in one else "-"

    training = [
        f"| {one['name']} | {one['seconds']:.3f} | {text(one, 'flops', '.2f', 1e-12)} |"
        f" {percent(one['share']) if 'share' in one else '-'} |"
        f" {text(one, 'tokens_per_second', ',.0f')} | {text(one, 'compile_seconds', '.0f')} |"
        for one in of["training"]
    ]
    attention = [
        f"| {name} | {one['cudnn']['us']} | {one['flash']['us']} |"
        f" {one['forward']['us']} + {one['queries']['us']} + {one['keys']['us']} |"
        for name, one in zip(
            ("three segments and padding", "a prompt of 2048 with 8 x 256"),
            of["attention"].values(), strict=True,
        )
    ]  # fmt: skip
    errors = [
        error
        for one in of["attention"].values()
        for kernel in ("flash", "xla")
        for error in one[kernel]["errors"]
    ]
    chunks = of["chunk_steps_ms"]
    cudnn = max(max(one["cudnn"]["errors"]) for one in of["attention"].values())
    *speeds, fastest = (f"{one['tokens_per_second']:,.0f}" for one in of["decode"][1:])
    shares = [one["share"] for one in of["decode"][1:]]
    together, caption = of["prefill"][-1], of["caption"]
    lora, full, *_, grpo = of["training"]
    peaks = [f"{one['peak_gb']:.1f} GB" for one in (lora, full, grpo)]
    return {
        "docs/performance.md": [
            *decode_rows(of), *prefill_rows(of), *training, *attention,
            f"NVIDIA H200, driver {of['facts']['driver']}, jax {of['facts']['jax']}",
            f"relative errors of {min(errors):.4f} to {max(errors):.4f}, cuDNN's up to {cudnn:.4f}",
            f"the step of B = 8 took {chunks['8'] - chunks['32']:.2f} ms more than with",
            f"{caption['warm_cache_s']:.1f} s by its own clock",
            f"with an empty compilation cache {caption['empty_cache_s']:.1f} s",
            "{} (LoRA), {} (full) and {} (GRPO)".format(*peaks),
        ],
        "README.md": [
            f"{', '.join(speeds)} and {fastest} tokens/s: {100 * min(shares):.0f} to "
            f"{percent(max(shares))} of what the memory's bandwidth",
            f"| {together['seconds'] / 3:.3f} s, {percent(together['share'])} of the peak |",
            f"{lora['tokens_per_second']:,.0f} tokens/s",
            f"{full['tokens_per_second']:,.0f} tokens/s, {percent(full['share'])} of the peak",
        ],
    }  # fmt: skip


def h100_sft(of: dict) -> dict[str, list[str]]:
    """`bash launch/accelerator_check.sh --sections sft`: table.json."""
    (step,) = of["training"]
    speed = f"{step['tokens_per_second']:,.0f} tokens/s"
    return {
        "docs/performance.md": [
            f"took {step['seconds']:.3f} s: {speed}, {percent(step['share'])} of the peak"
        ]
    }


def bench_mixed(of: str) -> dict[str, list[str]]:
    """`ugc-jax bench --work mixed`."""
    rows = re.findall(
        r"  (\w[\w ]*?) +([\d.]+) s +(?:([\d.]+) tokens/s +)?([\d.]+) x .*first round ([\d.]+) s",
        of,
    )
    names = {"engine": "engine", "batches": "one batch at a time",
             "transformers": "transformers, eight clips at a time",
             "its prompts": "its prompts alone"}  # fmt: skip
    lines = [
        f"| {names[name]} | {rounded(seconds, '0.1')} | {rounded(speed, '1') if speed else '-'} | "
        f"{float(ratio):g} | {first} |"
        for name, seconds, speed, ratio, first in rows
    ]
    ours, _, theirs, _ = (row[2] for row in rows)
    beside = f"| {rounded(ours, '1')} tokens/s | transformers {rounded(theirs, '1')} tokens/s |"
    return {"docs/performance.md": lines, "README.md": [beside]}


def bench_vllm(of: str) -> dict[str, list[str]]:
    """`ugc-jax bench --vllm_python` with jax 0.10."""
    return {"docs/performance.md": beside_vllm(of, "jax 0.10.2, Python 3.11")}


def bench_vllm_jax012(of: str) -> dict[str, list[str]]:
    """The same with jax 0.12."""
    ours, theirs = (rounded(f"{sum(one)}", "0.1") for one in seconds(of))
    return {
        "docs/performance.md": beside_vllm(of, "jax 0.12.0, Python 3.13"),
        "README.md": [f"| {ours} s (jax 0.12) | vLLM {theirs} s |"],
    }


def beside_vllm(of: str, versions: str) -> list[str]:
    """The two rows of the table: seconds of prefill and decode, and our speed over vLLM's."""
    ours, theirs = (
        [f"{rounded(f'{part}', '0.01')} s" for part in (*one, sum(one))] for one in seconds(of)
    )
    step = rounded(f"{seconds(of)[0][1] / 63 * 1000}", "1")
    together = re.search(r"together ([\d.]+)", of)[1]
    return [
        f"| ugc_jax, {versions} | {ours[0]} | {ours[1]} ({step} ms a step) | {ours[2]} "
        f"| {together} |",
        f"| vLLM, beside it | {' | '.join(theirs)} | |",
    ]


def seconds(of: str) -> list[tuple[Decimal, Decimal]]:
    """(prefill, decode) of ours and of vLLM's."""
    found = re.findall(r"prefill ([\d.]+) s +decode ([\d.]+) s", of)
    return [(Decimal(prefill), Decimal(decode)) for prefill, decode in found]


def rollouts(of: str) -> dict[str, list[str]]:
    """`python launch/rollout_bench.py CHECKPOINT --rows 2 --repeats 1`."""
    (first, _), *others = re.findall(r"([\d.]+) s \(([\d.]+) x together\)   computed", of)
    equal = re.findall(r"(\d+) of (\d+) completions", of)[2]
    return {
        "docs/performance.md": [
            f"(the default) | {first} | 1 |",
            *(f" | {seconds} | {ratio} |" for seconds, ratio in others),
            f"{equal[0]} of the {equal[1]} completions are the same",
        ]
    }


def serve_load(of: str) -> dict[str, list[str]]:
    """`python launch/load_test.py --concurrency 16,64 --requests 100`."""
    alone = re.search(r"alone: (\d+) tokens/s", of)[1]
    few, many = re.findall(
        r"(\d+) clients: .* latency ([\d.]+) s median.* (\d+) tokens/s, 0 faults, ([\d.]+) of", of
    )
    return {
        "docs/serving.md": [
            f"the engine alone {alone} tokens/s; {few[0]} clients {few[2]} tokens/s ({few[3]}), "
            f"{float(few[1]):.1f} s a request (median); {many[0]} clients {many[2]} tokens/s "
            f"({many[3]}), {float(many[1]):.1f} s."
        ]
    }


def schema_check(of: str) -> dict[str, list[str]]:
    """`python launch/schema_check.py --count 500`."""
    count, ended, wrong = re.search(r"(\d+) schemas .*: (\d+) ended .* which (\d+)", of).groups()
    assert wrong == "0"
    lost = re.search(r"\(([\d.]+)% less\)", of)[1]
    return {
        "docs/serving.md": [
            f"Of {count} random JSON schemas on the tiny size, {ended} answers ended by "
            "themselves, all of them valid",
            f"lost {lost} % of their tokens/s",
        ]
    }


def report(of: dict) -> dict[str, list[str]]:
    """`python launch/report_bench.py docs/figures/report.json`."""
    made = f"{of['seconds']:.0f} s, {of['megabytes']:.1f} MB; opens in {of['open_seconds']:.2f} s"
    clicked, played = (of[f"{name}_second"] for name in ("clicked", "played_from"))
    texts = [f"| {made}; clicked at {clicked:.1f} s, plays from {played:.1f} s |"]
    return {"docs/verification.md": texts}


def commands(of: list) -> dict[str, list[str]]:
    """`python launch/docs_commands.py --fresh clone --output docs/figures/commands.json`."""
    states = [one["state"] for one in of]
    assert "failed" not in states
    return {
        "docs/verification.md": [
            f"{len(states)} commands: {states.count('works')} work, "
            f"{states.count('skipped')} need what their row in the table names"
        ]
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_page_has_the_figures_of_a_file(path):
    text = path.read_text("utf-8")
    of = json.loads(text) if path.suffix == ".json" else text
    expected = globals()[path.stem](of)
    assert expected
    for page, texts in expected.items():
        flat = " ".join((ROOT / page).read_text("utf-8").split())
        assert [one for one in texts if " ".join(one.split()) not in flat] == []

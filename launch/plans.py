"""The figures of `ugc-jax plan` in the docs: python launch/plans.py

docs/figures/plans.json has what `plan --json` wrote, in short, by its command's words. Without
arguments, prints the tables of the pages, made of that file; the suite compares them with the
pages. `python launch/plans.py --make` compiles all again (needs libtpu; an hour on a few cores) and
writes the file; words after it are a part of the commands to compile: `--make sft_7b`.
"""

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
FILE = DOCS / "figures" / "plans.json"
GIB = 2**30
COMMANDS = (
    "--config sft_3b --topology v5e:4x4",
    "--config sft_3b --topology v5e:8x8 --batch_size 64",
    "--config sft_3b --topology v5e:16x16 --batch_size 256",
    "--config sft_3b:lora --topology v5e:2x4",
    "--config sft_3b_20k --topology v5e:4x4",
    "--config grpo_3b --topology v5e:4x4",
    "--config grpo_3b:lora --topology v5e:4x4",
    "--config sft_7b --topology v5e:4x4",
    "--config sft_7b --topology v6e:2x4",
    "--config sft_7b:lora --topology v5e:2x4",
    "--config sft_7b:lora --topology v6e:2x2",
    "--config grpo_7b:lora --topology v5e:4x4",
    "--config grpo_7b --topology v5e:4x4",
    "--job caption --caption_tokens 256 --topology v5e:1x1",
    "--job caption --caption_tokens 256 --topology v5e:1x1 --weights int8 --cache int8",
    "--job caption --caption_tokens 256 --topology v6e:1x1",
    "--job caption --caption_tokens 256 --topology v5e:2x2 --mesh.tensor 4"
    " --checkpoint Qwen/Qwen2.5-Omni-7B --max_new_tokens 1024",
    "--job serve --caption_tokens 256 --topology v5e:1x1",
)
# The slices that `auto` chooses in launch/slices.sh.
CHOSEN = {
    "sft_3b:lora": "v5e:2x4", "sft_3b": "v5e:4x4", "sft_3b_20k": "v5e:4x4",
    "grpo_3b:lora": "v5e:4x4", "grpo_3b": "v5e:4x4", "sft_7b:lora": "v5e:2x4",
    "sft_7b": "v5e:4x4", "grpo_7b:lora": "v5e:4x4", "grpo_7b": "v5e:4x4",
}  # fmt: skip


def main(words: list[str]) -> int:
    """Exit status 0, or 2 for a command that fails."""
    if words[:1] == ["--make"]:
        return make(words[1:])
    for page, tables in TABLES.items():
        for table in tables:
            print(f"docs/{page}\n\n{table()}\n")
    return 0


def make(parts: list[str]) -> int:
    """Compile the commands that have all parts, and write the file after each."""
    content = plans() if FILE.exists() else {}
    for command in COMMANDS:
        if all(part in command.split() for part in parts):
            print(f"ugc-jax plan {command}", flush=True)
            made = planned(command)
            if made is None:
                return 2
            content[command] = made
            order = {one: content[one] for one in COMMANDS if one in content}
            FILE.parent.mkdir(exist_ok=True)
            FILE.write_text(json.dumps(order, indent=1) + "\n", "utf-8")
    return 0


def planned(command: str) -> dict | None:
    """Run `ugc-jax plan` and return its figures in short; None if it fails."""
    line = [sys.executable, "-m", "ugc_jax.cli", "plan", *command.split()]
    done = subprocess.run([*line, "--knobs=false", "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 1):
        return None
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    return versions | short(json.loads(done.stdout))


def short(figures: dict) -> dict:
    """Return the figures of `plan --json` that the pages have: bytes of a chip, seconds."""
    kept = {
        name: figures[name]
        for name in (
            "arguments", "peak", "model_flops", "executed_flops", "mfu", "fits", "slots", "most",
            "weights", "slot", "tokens", "new_tokens", "group", "least", "tokens_per_second",
            "prefill_seconds", "clip_seconds", "clips_per_hour",
        )
        if name in figures
    }  # fmt: skip
    rows = figures["settings"].get("data", {}).get("batch_size")
    floors = figures.get("floors")
    programs = [
        {
            **{name: one[name] for name in ("name", "held", "peak", "flops", "executed", "runs")},
            "arguments": one["memory"]["arguments"],
            "seconds": one["floors"]["step"],
            "bound": one["floors"]["bound"],
        }
        for one in figures.get("programs", ())
    ]
    if floors is not None:
        kept["floors"] = floors
    if programs:
        kept["programs"] = programs
        kept["peak"] = max(one["peak"] for one in programs)
        kept["seconds"] = figures.get("seconds")
    duration = figures.get("duration", {})
    for name in ("examples_per_second", "hours", "chip_hours"):
        kept[name] = duration.get(name)
    chip = {"chip": figures["chip"]["name"], "hbm": figures["chip"]["hbm"]}
    return chip | {"chips": figures["chips"], "rows": rows} | kept


# ---- tables --------------------------------------------------------------------------------------


def plans() -> dict[str, dict]:
    """Return the figures of each command."""
    return json.loads(FILE.read_text("utf-8"))


def gib(count: float) -> str:
    """Return bytes as GiB."""
    return f"{count / GIB:.2f}"


def tera(count: float) -> str:
    """Return operations as TFLOP."""
    return f"{count / 1e12:,.0f}"


def markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table."""
    lines = [head, ("---",) * len(head), *rows]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return text.replace("| --- |", "|---|").replace(" --- |", "---|")


def step_seconds(plan: dict) -> float:
    """Return the least time of a step."""
    return plan["floors"]["step"] if "floors" in plan else plan["seconds"]


def step_flops(plan: dict) -> tuple[float, float]:
    """Return the operations of a step, and with what is computed again."""
    programs = plan.get("programs")
    if programs is None:
        return plan["model_flops"], plan["executed_flops"]
    return tuple(sum(one[name] for one in programs) for name in ("flops", "executed"))


def sweep() -> str:
    """SFT of the 3B on 16, 64 and 256 chips."""
    rows = []
    for slice_, rest in (("4x4", ""), ("8x8", " --batch_size 64"), ("16x16", " --batch_size 256")):
        one = plans()[f"--config sft_3b --topology v5e:{slice_}{rest}"]
        rows.append((
            f"v5e:{slice_}", str(one["chips"]), str(one["rows"]), gib(one["peak"]),
            f"{step_seconds(one):.3f}", f"{one['mfu']:.0%}".replace("%", " %"),
            f"{one['examples_per_second']:.1f}",
        ))  # fmt: skip
    head = "slice", "chips", "rows", "GiB a chip of 15.75", "s a step", "MFU", "examples/s"
    return markdown(head, rows)


def sft() -> str:
    """The SFT configs of the 3B."""
    rows = []
    for config, topology in (("sft_3b", "4x4"), ("sft_3b_20k", "4x4"), ("sft_3b:lora", "2x4")):
        words = f"--config {config} --topology v5e:{topology}"
        one = plans()[words]
        rows.append((
            f"`ugc-jax plan {words}`", str(one["rows"]), gib(one["arguments"]), gib(one["peak"]),
            f"{tera(one['model_flops'])}, {tera(one['executed_flops'])}",
            f"{step_seconds(one):.2f}",
        ))  # fmt: skip
    head = (
        "command", "rows", "arguments", "peak", "TFLOP a step, with recomputation",
        "s a step, at least",
    )  # fmt: skip
    return markdown(head, rows)


_PROGRAMS = {"weights": "weights, cast and split for sampling", "decode": "decode, 512 steps"}


def grpo() -> str:
    """The programs of a GRPO step of the 3B."""
    rows = [
        (
            _PROGRAMS.get(one["name"], one["name"]), gib(one["held"]), gib(one["arguments"]),
            gib(one["peak"]), tera(one["flops"]), f"{one['seconds']:.2f}",
        )
        for one in plans()["--config grpo_3b --topology v5e:4x4"]["programs"]
    ]  # fmt: skip
    head = "program", "besides", "arguments", "peak", "TFLOP per step", "s, at least"
    return markdown(head, rows)


def grpo_text() -> str:
    """Sentences on the GRPO step of the 3B."""
    one = plans()["--config grpo_3b --topology v5e:4x4"]
    first, *others = plans()["--config grpo_3b:lora --topology v5e:4x4"]["programs"]
    most = max(program["peak"] for program in others)
    return (
        f"A step takes at least {one['seconds']:.1f} s, half of it decoding; "
        f"{one['mfu'] * 100:.0f} % MFU at most. `:lora` fits, too: its peak is "
        f"{gib(first['peak'])} while the weights are moved to that mesh, and at most {gib(most)} "
        "otherwise."
    )


def sft_text() -> str:
    """A sentence on the SFT step of the 3B."""
    floors = plans()["--config sft_3b --topology v5e:4x4"]["floors"]
    return (
        f"On v5e:4x4 the floors are {floors['products']:.3f} s by the products (a fifth of them is "
        f"computed again), {floors['memory']:.3f} s by HBM, {floors['links']:.3f} s by the links "
        f"and {floors['waits']:.3f} s of collectives alone"
    )


def slices() -> str:
    """The slices that `auto` chooses."""
    rows = []
    for config, topology in CHOSEN.items():
        one = plans().get(f"--config {config} --topology {topology}")
        if one is None:
            continue
        cells = gib(one["peak"]), gib(one["hbm"]), f"{step_seconds(one):.2f}"
        rows.append((f"`{config}`", topology, *cells))
    return markdown(("config", "slice", "GiB a chip", "of", "s a step, at least"), rows)


def sevens() -> str:
    """Training of the 7B."""
    rows = []
    for words, one in plans().items():
        if "_7b" in words:
            fits = "fits" if one["fits"] else "does not fit"
            flops = ", ".join(map(tera, step_flops(one)))
            rows.append((
                f"`ugc-jax plan {words}`", f"{gib(one['peak'])}, {fits}", gib(one["hbm"]),
                flops, f"{step_seconds(one):.2f}", one["libtpu"],
            ))  # fmt: skip
    head = (
        "command", "peak", "of", "TFLOP a step, with recomputation", "s a step, at least", "libtpu",
    )  # fmt: skip
    return markdown(head, rows)


def captions() -> str:
    """Captions and serving."""
    rows = []
    for words, one in plans().items():
        if words.startswith("--job"):
            decode = one["programs"][-1]
            rows.append((
                f"`{words}`", gib(one["peak"]), str(one["slots"]), str(one["most"]),
                f"{decode['seconds'] * 1e3:.1f}", f"{one['tokens_per_second']:,.0f}",
                f"{one['prefill_seconds']:.3f}", f"{one['clips_per_hour']:,.0f}",
            ))  # fmt: skip
    head = (
        "`ugc-jax plan`", "GiB a chip", "slots", "that fit", "ms a step", "tokens/s",
        "s of encoders and prefill a clip", "clips/hour",
    )  # fmt: skip
    return markdown(head, rows)


TABLES: dict[str, tuple[Callable[[], str], ...]] = {
    "planning.md": (sweep, captions),
    "training.md": (sft,),
    "grpo.md": (grpo,),
    "pods.md": (slices,),
    "paper.md": (sevens,),
}

SENTENCES: dict[str, Callable[[], str]] = {"planning.md": sft_text, "grpo.md": grpo_text}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

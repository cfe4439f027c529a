"""Published scores on UGC-VideoCap and their protocols (spec/ugc_videocap.md), and on others.

The keys of scores: `task` for its score, `task.column` for one of its columns, and `average` for
the mean of the paper's eight columns. Scores are kept as printed.
"""

from typing import NamedTuple

from ugc_jax.evals.benchmarks.benchmark import Benchmark
from ugc_jax.evals.benchmarks.table import BENCHMARKS

PAPER = "2507.11336"  # arXiv: UGC-VideoCaptioner, its table 2 and its model zoo
COLUMNS = (
    "average", "voice_source", "tone", "ocr", "background", "objects",
    "final_caption.audio", "final_caption.visual", "final_caption.details", "final_caption",
)  # fmt: skip

_JUDGE = {"judge": "gpt-4o-2024-08-06", "prompt": "released"}
# The protocols of the paper's judged tasks, in the form of a result.
PROTOCOLS = {
    "final_caption": _JUDGE | {"temperature": 1.0},
    "background": _JUDGE | {"temperature": 0.0},
    "objects": _JUDGE | {"temperature": 0.0},
}

# Headings of the rows of the paper and of the others.
HEADINGS = (
    f"Published in arXiv {PAPER}: captions judged by gpt-4o-2024-08-06 at temperature 1 with the "
    "released prompt; frames where they are known",
    "Published since, each with a protocol of its own",
)


class Row(NamedTuple):
    """source: arXiv id. frames: number that the model was given, None if unknown.

    normalisation: of the texts in the OCR task, None if unknown.
    """

    model: str
    scores: dict[str, str]
    source: str = PAPER
    frames: int | None = None
    normalisation: str | None = None

    @property
    def protocol(self) -> str:
        """The known facts of a caption score beyond `HEADINGS`."""
        if self.source != PAPER:
            return f"arXiv {self.source}"
        return f"{self.frames} frames" if self.frames else ""


def _table_2(model: str, printed: str, **facts) -> Row:
    return Row(model, dict(zip(COLUMNS, printed.split(), strict=True)), **facts)


def _caption(model: str, printed: str, **facts) -> Row:
    """A row of the caption task only: its three columns and their mean, or only the mean."""
    scores = printed.split()
    return Row(model, dict(zip(COLUMNS[-len(scores) :], scores, strict=True)), **facts)


# The normalisation that gives the printed OCR score of the released predictions.
_RAW, _CLEANED = {"normalisation": "raw"}, {"normalisation": "cleaned"}
ROWS = (
    _table_2("Gemini-2.5-pro", "64.3 71.5 62.6 .693 51.3 38.7 70.8 75.8 74.8 73.78", **_RAW),
    _table_2("Gemini-2.5-flash", "67.4 78.2 64.1 .694 53.6 43.9 74.2 78.8 77.2 76.73", **_RAW),
    _table_2("Qwen2.5-Omni-7B", "50.9 86.6 44.9 .644 21.6 15.7 57.6 59.4 57.0 58.0", **_RAW),
    _table_2("Qwen2.5-Omni-3B", "48.6 93.0 46.9 .561 18.4 18.3 48.2 55.6 52.6 52.18", **_RAW),
    _table_2("MiniCPM-o-2.6", "48.9 80.9 29.0 .672 26.1 9.9 46.0 70.4 62.4 59.6", **_CLEANED),
    _table_2("Gemma-3n-E4B", "38.1 65.6 46.2 .124 4.8 15.9 54.2 54.6 51.2 53.3", **_CLEANED),
    _table_2("Gemma-3n-E2B", "32.6 37.2 28.7 .095 9.3 22.3 52.0 52.4 49.6 51.3", **_CLEANED),
    _caption("Qwen2.5-Omni-3B + 1k RL", "53.0 57.8 55.4 55.40", frames=32),
    _caption("Qwen2.5-Omni-3B + 1k SFT", "61.4 58.4 57.0 58.96", frames=32),
    _caption("Qwen2.5-Omni-3B + 10k SFT", "63.2 58.4 58.0 59.87", frames=32),
    _caption("Qwen2.5-Omni-3B + 20k SFT", "64.0 59.2 58.4 60.50", frames=32),
    _caption("UGC-VideoCaptioner-3B (1k SFT + 1k RL)", "62.4 59.4 58.2 60.01", frames=32),
    _caption("OmniCaptioner-IF-3B", "70.68", source="2606.08572"),
    _caption("AVoCaDO-7B", "73.2", source="2510.10395"),
    _caption("ASID-Captioner-7B", "81.2", source="2602.13013"),
    _caption("AVCap-30B", "85.1", source="2608.06930"),
)


def _by_caption(benchmark: Benchmark) -> tuple[Row, ...]:
    """The published rows of another benchmark."""
    return tuple(
        Row(
            figure.model,
            {
                benchmark.task if name == "score" else f"{benchmark.task}.{name}": text
                for name, text in figure.scores.items()
            },
            source=figure.source,
        )
        for figure in benchmark.figures
    )


# Of UGC-VideoCap and of the benchmarks by caption; these are each in a table of its own.
ALL_ROWS = (*ROWS, *(row for one in BENCHMARKS.values() for row in _by_caption(one)))


def differences(task: str, protocol: dict) -> list[str]:
    """Differences of a result's protocol from the paper's, in words.

    Empty without any, and for a task without a judge.
    """
    return [
        f"{name} {_words(protocol.get(name))} instead of {_words(value)}"
        for name, value in sorted(PROTOCOLS.get(task, {}).items())
        if protocol.get(name) != value
    ]


def _words(value: object) -> str:
    return "unknown" if value is None else f"{value:g}" if isinstance(value, float) else str(value)

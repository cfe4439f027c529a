"""WorldSense by caption: worldsense_qa.json, 3,172 questions about 1,662 videos.

Papers name none of its columns: map them, --map video=A,question=B,choices=C,answer=D.
"""

from ugc_jax.evals.benchmarks import questions
from ugc_jax.evals.benchmarks.benchmark import Benchmark, Figure

BENCHMARK = Benchmark(
    task="worldsense",
    title="WorldSense by caption",
    kind=questions.KIND,
    columns={},
    judge="Gemini-2.5-Pro at temperature 0",
    figures=(
        Figure("AVoCaDO-7B", {"score": "25.7"}, "2510.10395"),
        Figure("ASID-Captioner-7B", {"score": "34.0"}, "2602.13013"),
    ),
    file="worldsense_qa.json",
    videos=1662,
    samples=3172,
)

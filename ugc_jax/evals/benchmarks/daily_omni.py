"""Daily-Omni by caption: qa.json with Question, Choice and Answer; 684 videos.

No paper names the column of the video: map it, --map video=COLUMN.
"""

from ugc_jax.evals.benchmarks import questions
from ugc_jax.evals.benchmarks.benchmark import Benchmark, Figure

BENCHMARK = Benchmark(
    task="daily_omni",
    title="Daily-Omni by caption",
    kind=questions.KIND,
    columns={"question": "Question", "choices": "Choice", "answer": "Answer"},
    judge="Gemini-2.5-Pro at temperature 0",
    figures=(
        Figure("AVoCaDO-7B", {"score": "50.1"}, "2510.10395"),
        Figure("ASID-Captioner-7B", {"score": "61.2"}, "2602.13013"),
    ),
    file="qa.json",
    videos=684,
)

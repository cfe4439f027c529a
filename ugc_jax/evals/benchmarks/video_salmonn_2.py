"""video-SALMONN-2 test set (hub: tsinghua-ee/video-SALMONN_2_testset): a video and its events.

No paper names its columns: map them, --map video=COLUMN,events=COLUMN.
"""

from ugc_jax.evals.benchmarks import events
from ugc_jax.evals.benchmarks.benchmark import Benchmark, Figure


def _figure(model: str, score: str, missed: str, hallucinated: str, source: str) -> Figure:
    scores = {"score": score, "missed": missed, "hallucinated": hallucinated}
    return Figure(model, scores, source)


BENCHMARK = Benchmark(
    task="video_salmonn_2",
    title="video-SALMONN-2 test set",
    kind=events.KIND,
    columns={},
    judge="GPT-4.1 (GPT-3.5 before AVoCaDO)",
    figures=(
        _figure("AVoCaDO-7B", "37.3", "21.1", "16.2", "2510.10395"),
        _figure("ASID-Captioner-7B", "35.9", "20.5", "15.4", "2602.13013"),
    ),
)

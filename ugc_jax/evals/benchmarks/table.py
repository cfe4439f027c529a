"""All benchmarks by caption, by the names that `ugc-jax evaluate --benchmark` takes."""

from typing import Literal

from ugc_jax.evals.benchmarks import daily_omni, video_salmonn_2, worldsense
from ugc_jax.evals.benchmarks.benchmark import Benchmark

Name = Literal["video-salmonn-2", "daily-omni", "worldsense"]

BENCHMARKS: dict[Name, Benchmark] = {
    "video-salmonn-2": video_salmonn_2.BENCHMARK,
    "daily-omni": daily_omni.BENCHMARK,
    "worldsense": worldsense.BENCHMARK,
}

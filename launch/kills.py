"""What kill_resume.py and kill_caption.py share: a job that is killed until it comes to its end."""

import random
import subprocess
import sys
from collections.abc import Callable

from tqdm import tqdm


def kill_and_continue(
    start: Callable[[], subprocess.Popen],
    finish: Callable[[subprocess.Popen], dict],
    kept: Callable[[], int],
    remove: Callable[[], None],
    expected: dict,
    seconds: float,
    kills: int,
    seed: int,
) -> tuple[int, list[tuple[int, int]]]:
    """Kill a job (`kill -9`) `kills` times, each at a random moment of its run, and continue it.

    start: begins or continues the job. finish: waits for it; its result must be `expected`. kept:
    the work that is on disk, which no kill may lower. remove: what a job that ended before its kill
    has made, so that it starts again. seconds: of a whole run.

    Returns (runs that came to their end, `kept` before and after each kill). Ends this process
    with a message if a result differs or work is lost.
    """
    times, ends, now, seen = random.Random(seed), 0, 0, []
    with tqdm(total=kills, desc="kills", unit="kill") as bar:
        while True:
            process = start()
            if bar.n < kills:
                try:
                    process.wait(times.uniform(0, seconds))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    bar.update()
                    before, now = now, kept()
                    seen.append((before, now))
                    if now < before:
                        sys.exit(f"kill {bar.n}: {before} of the work was done before, {now} after")
                    continue
            if finish(process) != expected:
                sys.exit("the result differs from that of the run without kills")
            ends += 1
            if bar.n == kills:
                return ends, seen
            remove()
            now = 0

"""Load on `ugc-jax annotate`: many people save at a time; is every save there, how slow is it?

    python launch/annotate_load.py [--people 25] [--saves 5000] [--seconds 60] [--database URL]
                                   [--kills 0]

Starts a server on a free port with a project in a temporary folder (or the database named), lets
each person take a clip and save it again and again, evenly over the seconds, and prints saves a
second and the latency of a save, median, 95th percentile and largest. With --kills the server is
killed (SIGKILL) that many times at random moments and started again. At the end the database is
read: every acknowledged save has to be there, with its value, once. Exit status 1 otherwise.
"""

import argparse
import contextlib
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from annotating import PASSWORD, Person, running, write_clips  # noqa: E402

from ugc_jax.annotate import tables  # noqa: E402
from ugc_jax.annotate.store import Store  # noqa: E402


class Load(NamedTuple):
    """saves: acknowledged. latencies: seconds. lost: acknowledged saves that are not there.

    foreign: saves in the database that nobody sent. kills: of the server.
    """

    saves: int
    seconds: float
    latencies: list[float]
    lost: int
    foreign: int
    kills: int

    def line(self) -> str:
        """The figures in one line."""
        ordered = sorted(self.latencies)
        p95 = ordered[int(0.95 * (len(ordered) - 1))]
        return (
            f"{self.saves} saves in {self.seconds:.1f} s ({self.saves / self.seconds:.0f}/s), "
            f"{1000 * statistics.median(ordered):.0f} ms median, {1000 * p95:.0f} ms p95, "
            f"{1000 * ordered[-1]:.0f} ms largest; {self.kills} kills, {self.lost} lost, "
            f"{self.foreign} foreign"
        )


class _Server:
    """A server that is started again after a kill."""

    def __init__(self, clips: Path, output: Path, flags: list[str]):
        self._start = lambda: running(clips, output, *flags)
        self._lock = threading.Lock()
        self._context = self._start()
        self.address, self._process = self._context.__enter__()

    def kill_and_start(self):
        with self._lock:
            self._process.kill()
            self._context.__exit__(None, None, None)
            self._context = self._start()
            self.address, self._process = self._context.__enter__()

    def close(self):
        self._context.__exit__(None, None, None)


def load(
    folder: Path, people: int, saves: int, seconds: float, database: str | None = None,
    kills: int = 0, seed: int = 0,
) -> Load:  # fmt: skip
    """Run the load in a folder. saves: of all people, spread over the seconds."""
    clips, output = write_clips(folder / "clips", people), folder / "project"
    output.mkdir()
    names = [f"person-{number}" for number in range(people)]
    store = Store(database or str(output / "annotate.sqlite"))
    store.accounts.add("owner", PASSWORD, "owner")
    for name in names:
        store.accounts.add(name, PASSWORD, "annotator")
    flags = ["--database", database] if database else []
    server = _Server(clips, output, flags)
    sent: dict[str, dict[int, str]] = {name: {} for name in names}  # version -> caption
    acknowledged: dict[str, dict[int, str]] = {name: {} for name in names}
    latencies: list[float] = []
    works: dict[str, int] = {}
    ready = threading.Barrier(people + 1)

    def work(name: str, number: int):
        person = Person(server.address, name)
        works[name] = person.next()
        person.get(f"/works/{works[name]}/sound")
        ready.wait()
        begin, version = time.monotonic(), 0
        count = saves // people
        for turn in range(count):
            pause = begin + (turn + number / people) * seconds / count - time.monotonic()
            time.sleep(max(0.0, pause))
            text = f"{name} says {turn}"
            while True:  # until it is acknowledged, as the page does
                sent[name][version + 1] = text
                start = time.monotonic()
                try:
                    answer = person.save(works[name], "sound", version, {"caption": text})
                    answer.raise_for_status()
                except Exception as error:
                    reply = getattr(error, "response", None)
                    if reply is not None and reply.status_code == 409:
                        # the one before was saved, and the server died before it could say so
                        assert reply.json()["value"] == {"caption": text}
                        version = reply.json()["version"]
                    elif reply is not None:
                        raise
                    else:
                        time.sleep(0.1)
                        person.client.base_url = server.address
                        continue
                else:
                    latencies.append(time.monotonic() - start)
                    version = answer.json()["version"]
                acknowledged[name][version] = text
                break

    faults: list[BaseException] = []

    def guarded(*arguments):
        try:
            work(*arguments)
        except BaseException as error:
            faults.append(error)
            ready.abort()

    threads = [
        threading.Thread(target=guarded, args=(name, number)) for number, name in enumerate(names)
    ]
    for thread in threads:
        thread.start()
    with contextlib.suppress(threading.BrokenBarrierError):
        ready.wait()
    begin, chance = time.monotonic(), random.Random(seed)
    for _ in range(kills):
        time.sleep(chance.uniform(0.2, 1.8) * seconds / kills)
        server.kill_and_start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - begin
    server.close()
    if faults:
        raise faults[0]
    stored: dict[str, dict[int, str]] = {name: {} for name in names}
    with store.database.read() as c:
        by_work = {work: name for name, work in works.items()}
        for row in c.execute(sa.select(tables.saves)):
            stored[by_work[row.work]][row.version] = row.value["caption"]
    store.close()
    lost = sum(
        stored[name].get(version) != text
        for name, given in acknowledged.items()
        for version, text in given.items()
    )
    foreign = sum(
        sent[name].get(version) != text
        for name, given in stored.items()
        for version, text in given.items()
    )
    count = sum(map(len, acknowledged.values()))
    return Load(count, took, latencies, lost, foreign, kills)


def main() -> int:
    """Print the figures; exit status 1 if a save was lost."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--people", type=int, default=25)
    parser.add_argument("--saves", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--database")
    parser.add_argument("--kills", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = load(Path(folder), **vars(given))
    print(result.line())
    return 0 if result.lost == result.foreign == 0 else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.SubprocessError as error:
        sys.exit(str(error))

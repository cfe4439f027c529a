"""What `ugc-jax doctor` finds: each part of the machine that captioning and training need.

A part that is faulty is a Finding with a remedy, whatever raises or hangs; the others go on.
Devices are asked in a child process and the hub in a thread, both within a limit of time.
"""

import glob
import importlib.metadata
import json
import os
import platform
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ugc_jax import __version__, extras
from ugc_jax.errors import environment_failure

OK, NOTE, BROKEN = "ok", "note", "broken"
GIB = 1 << 30
CHECKPOINTS = "openinterx/UGC-VideoCaptioner", "Qwen/Qwen2.5-Omni-3B", "Qwen/Qwen2.5-Omni-7B"
DOWNLOAD = 12 * GIB  # of the 3B
_AGAIN = "install ugc_jax again"
_NEEDED = (  # by captions, by their names on PyPI
    "jax", "jaxlib", "flax", "numpy", "av", "pillow", "soxr", "tokenizers", "huggingface-hub",
)  # fmt: skip
# Decoders, and what the lack of one is: nearly all clips have the first two.
_CODECS = {"h264": BROKEN, "aac": BROKEN, "hevc": NOTE, "vp9": NOTE, "av1": NOTE, "opus": NOTE}
_CHILD = [sys.executable, "-P", "-m", "ugc_jax.plan.devices"]


class Finding(NamedTuple):
    """A line of the report. state: OK, NOTE (something is missing or unusual) or BROKEN."""

    part: str
    state: str
    text: str
    remedy: str = ""


class Report(NamedTuple):
    """findings: in the order of the report. fits: as `plan.fits.Fit`, {} keys; [] if unknown.

    next: command lines to type next.
    """

    findings: list[Finding]
    fits: list[dict]
    next: list[str]

    @property
    def ok(self) -> bool:
        """Whether all that captioning needs works."""
        return all(finding.state != BROKEN for finding in self.findings)


def examine(device_seconds: float = 60, hub_seconds: float = 5) -> Report:
    """Look at the machine.

    device_seconds, hub_seconds: how long devices and the hub may take to answer.
    """
    memory = host_memory()
    devices = _Devices(memory, device_seconds)  # begins now
    hub = _in_time(lambda: check_hub(hub_seconds), hub_seconds + 2)
    findings = [*_try("versions", check_versions)]
    findings += _try("decoders", check_decoders)
    cards = accelerators()
    facts, found = devices.wait(cards)
    findings += [*found, *_try("memory", lambda: check_memory(memory))]
    findings += _try("cache", lambda: check_cache(facts.get("cache")))
    findings += _try("disk", check_disk)
    findings += hub()
    findings += _try("extras", check_extras)
    fits = facts.get("fits", [])
    return Report(findings, fits, advice(findings, fits, facts))


def _try(part: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """The findings of a check; what it raises is one, too."""
    found = []
    try:
        found.extend(check())
    except Exception as error:  # whatever a broken installation raises
        found.append(_fault(part, error))
    return found


def _fault(part: str, error: BaseException) -> Finding:
    failure = environment_failure(error)
    reason = " ".join(str(failure or f"{type(error).__name__}: {error}").split())
    text, _, remedy = reason.rpartition("; ") if failure else (reason, "", _AGAIN)
    return Finding(part, BROKEN, f"{text:.200}", remedy)


def _in_time(check: Callable[[], Iterator[Finding]], seconds: float) -> Callable[[], list[Finding]]:
    """Start a check of the hub in a thread; returns what waits for its findings.

    A look-up of a name cannot be ended from outside: the thread is left to itself.
    """
    answers: queue.SimpleQueue[list[Finding]] = queue.SimpleQueue()
    work = threading.Thread(target=lambda: answers.put(_try("hub", check)), daemon=True)
    work.start()

    def result() -> list[Finding]:
        try:
            return answers.get(timeout=seconds)
        except queue.Empty:
            text = f"no answer within {seconds:.0f} s; local checkpoints work"
            return [Finding("hub", NOTE, text, "check the network, or set HF_HUB_OFFLINE=1")]

    return result


# ---- the parts -----------------------------------------------------------------------------------


def check_versions() -> Iterator[Finding]:
    """Yield the versions, and the libraries of captioning that are not installed."""
    python, system = platform.python_version(), f"{platform.system()} {platform.machine()}"
    found, absent = [], []
    for name in _NEEDED:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            absent.append(name)
    yield Finding("versions", OK, f"ugc_jax {__version__}, Python {python}, {system}")
    yield Finding("libraries", OK, ", ".join(found))
    if absent:
        text = f"{', '.join(absent)} not installed"
        yield Finding("libraries", BROKEN, text, f"pip install {' '.join(absent)}")


def check_decoders() -> Iterator[Finding]:
    """Yield which codecs of clips can be decoded, and whether HEIC photos can."""
    import av
    from av.codec import Codec

    absent = {}
    for name, state in _CODECS.items():
        try:
            Codec(name, "r")
        except (ValueError, av.FFmpegError):  # UnknownCodecError is a ValueError
            absent[name] = state
    numbers = ".".join(map(str, av.library_versions["libavcodec"]))
    there = ", ".join(name for name in _CODECS if name not in absent)
    yield Finding("decoders", OK, f"PyAV {av.__version__}, libavcodec {numbers}: {there}")
    for name, state in absent.items():
        remedy = "pip install --force-reinstall av"
        yield Finding("decoders", state, f"no decoder of {name}", remedy)
    if extras.missing("heif"):
        yield Finding("decoders", OK, "HEIC photos are not read", extras.command("heif"))


def host_memory() -> int:
    """Return the free bytes of this machine, or of the container's limit if that is less."""
    free = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        free.append(int(fields["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pages = os.sysconf("SC_PHYS_PAGES")
        free.append(pages * os.sysconf("SC_PAGE_SIZE"))
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        if limit != "max":
            free.append(int(limit) - int((folder / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(0, min(free))


def check_memory(free: int) -> Iterator[Finding]:
    """Yield the host's memory, and a note if even a tiny model has little."""
    text = f"{free / GIB:.1f} GiB of the host are free, {os.cpu_count()} cores"
    state = OK if free >= GIB else NOTE
    yield Finding("memory", state, text, "" if state == OK else "end other programs")


def check_cache(folder: str | None) -> Iterator[Finding]:
    """Yield where compiled programs are kept. folder: None if the devices are unknown."""
    if folder is None or "://" in folder:
        text = folder or "the folder depends on the device, which is unknown"
        yield Finding("cache", OK if folder else NOTE, text)
        return
    path = Path(folder)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    place = next(one for one in (path, *path.parents) if one.exists())
    if os.access(place, os.W_OK):
        yield Finding("cache", OK, f"compiled programs in {folder}: {size / 1e6:.0f} MB")
    else:
        text = f"{folder} cannot be written: each run compiles again"
        yield Finding("cache", NOTE, text, "set JAX_COMPILATION_CACHE_DIR to another folder")


def check_disk() -> Iterator[Finding]:
    """Yield the free space here and, if no checkpoint is there yet, where the hub's files go."""
    yield _space("disk", Path.cwd(), 1 * GIB)
    from huggingface_hub import constants, try_to_load_from_cache

    here = [
        name for name in CHECKPOINTS if isinstance(try_to_load_from_cache(name, "config.json"), str)
    ]
    if here:
        yield Finding("checkpoints", OK, f"downloaded: {', '.join(here)}")
    else:
        yield _space("downloads", Path(constants.HF_HUB_CACHE), DOWNLOAD)


def _space(part: str, folder: Path, least: int) -> Finding:
    place = next(one for one in (folder, *folder.parents) if one.exists())
    free = shutil.disk_usage(place).free
    text = f"{free / GIB:.1f} GiB are free in {folder}"
    if free >= least:
        return Finding(part, OK, text)
    move = "free some" if part == "disk" else "free some, or set HF_HOME to a larger disk"
    return Finding(part, NOTE, f"{text}; a 3B needs {least / GIB:.0f}", move)


def check_hub(seconds: float) -> Iterator[Finding]:
    """Yield whether the hub answers, and to whom. Being offline is no fault."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import build_hf_headers, get_session

    if constants.HF_HUB_OFFLINE:
        yield Finding("hub", OK, "not asked: HF_HUB_OFFLINE is set; local checkpoints work")
        return
    token = get_token()
    page = "/api/whoami-v2" if token else f"/api/models/{CHECKPOINTS[0]}"
    try:
        headers = build_hf_headers(token=token or False)
        answer = get_session().get(constants.ENDPOINT + page, headers=headers, timeout=seconds)
        code = answer.status_code
        name = answer.json().get("name") if token and code == 200 else None
    except Exception as error:  # of an HTTP library, which depends on huggingface_hub's version
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        text = f"{constants.ENDPOINT} is not reached ({reason:.100}); local checkpoints work"
        yield Finding("hub", NOTE, text, "check the network, or set HF_HUB_OFFLINE=1")
        return
    if token and code == 401:
        yield Finding("hub", NOTE, "the hub refuses the token", "hf auth login")
    elif code >= 500:
        yield Finding("hub", NOTE, f"{constants.ENDPOINT} answers {code}", "try again later")
    else:
        who = f"as {name}" if name else "without a token (private and gated models need one)"
        yield Finding("hub", OK, f"{constants.ENDPOINT} is reached {who}")


def check_extras() -> Iterator[Finding]:
    """Yield the optional parts that are installed, and those that are not."""
    absent = [name for name in extras.EXTRAS if extras.missing(name)]
    there = [name for name in extras.EXTRAS if name not in absent]
    if there:
        yield Finding("extras", OK, f"installed: {', '.join(there)}")
    for name in absent:
        text = f"{name} is not installed ({extras.EXTRAS[name].purpose})"
        yield Finding("extras", OK, text, extras.command(name))


# ---- devices -------------------------------------------------------------------------------------


def accelerators() -> dict[str, str]:
    """Return what the system has, without jax: {"gpu": its name and driver} or {"tpu": ...}."""
    words = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,memory.used"]
    try:
        run = subprocess.run(
            [*words, "--format=csv,noheader"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
        if rows := run.stdout.strip().splitlines():
            name, driver, total, used = (word.strip() for word in rows[0].split(","))
            text = f"{len(rows)} x {name}, driver {driver}, {used} of {total} in use"
            return {"gpu": text}
    except (OSError, subprocess.SubprocessError, ValueError):
        pass
    # Of Google's PCI devices: 0x1ae0 is the vendor, and other chips than TPUs are few.
    for file in glob.glob("/sys/bus/pci/devices/*/vendor"):
        try:
            is_tpu = Path(file).read_text().strip() == "0x1ae0"
        except OSError:
            continue
        if is_tpu and (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")):
            return {"tpu": "a TPU"}
    return {}


class _Devices:
    """The child process that asks jax."""

    def __init__(self, memory: int, seconds: float):
        self._seconds = seconds
        path = os.pathsep.join(path or os.getcwd() for path in sys.path)
        settings = {"UGC_JAX_HOST_MEMORY": str(memory), "PYTHONPATH": path}
        settings |= {"TF_CPP_MIN_LOG_LEVEL": "3"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            _CHILD, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True,
            env=os.environ | settings,
        )  # fmt: skip

    def wait(self, cards: dict[str, str]) -> tuple[dict, list[Finding]]:
        """Return (the facts, {} if there are none; the findings)."""
        try:
            out, errors = self._process.communicate(timeout=self._seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()  # one that a driver holds fast is not waited for
            text = f"no answer from the devices within {self._seconds:.0f} s"
            remedy = "is another job using them? JAX_PLATFORMS=cpu leaves them alone"
            return {}, [Finding("devices", BROKEN, text, remedy)]
        try:
            facts = json.loads(out.splitlines()[-1])
        except (IndexError, ValueError):
            return {}, [_of_child(self._process.returncode, errors)]
        return facts, list(_of_devices(facts, cards))


def _of_child(code: int, errors: str) -> Finding:
    """What ended the child: the last line of its traceback."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    reason = lines[-1] if lines else f"exit status {code}"
    remedy = "JAX_PLATFORMS=cpu does without them"
    if "No module named" in reason or reason.startswith("ImportError"):
        remedy = _AGAIN
    return Finding("devices", BROKEN, f"jax does not start ({reason:.200})", remedy)


def _of_devices(facts: dict, cards: dict[str, str]) -> Iterator[Finding]:
    kind, count = facts["platform"], facts["count"]
    text = f"{count} x {facts['kind']} ({kind})"
    if kind != "cpu":
        # Jobs take nine tenths of a GPU (cli.py).
        text += (
            f", {facts['free'] / GIB:.1f} of {facts['total'] / GIB:.1f} GiB free for jax on each"
        )
    yield Finding("devices", OK, text)
    for card, about in cards.items():
        if kind == card:
            yield Finding("driver", OK, about)
        elif os.environ.get("JAX_PLATFORMS"):
            text = f"{about}, which JAX_PLATFORMS={os.environ['JAX_PLATFORMS']} leaves alone"
            yield Finding("driver", NOTE, text)
        else:
            which = "tpu" if card == "tpu" else "cuda12"
            text = f"{about}, which jax does not find"
            yield Finding("driver", NOTE, text, extras.command(which))


# ---- what to do next -----------------------------------------------------------------------------


def advice(findings: list[Finding], fits: list[dict], facts: dict) -> list[str]:
    """Return the command lines to type next: at most one of each kind."""
    broken = [finding.remedy for finding in findings if finding.state == BROKEN]
    if broken:
        return list(dict.fromkeys(remedy for remedy in broken if remedy))
    lines = [one.remedy for one in findings if one.part == "driver" and one.remedy]
    works = [fit for fit in fits if fit["verdict"] != "no"]
    captions = [fit["command"] for fit in works if fit["work"] == "caption"]
    states = {finding.part: finding.state for finding in findings}
    if captions and ("checkpoints" in states or states.get("hub") == OK):
        lines.append(captions[0])
    else:  # nothing that fits, or nothing to download it from
        lines += ["ugc-jax init --output runs/tiny"]
        lines += ["ugc-jax caption --checkpoint runs/tiny clip.mp4"]
    training = {
        fit["work"]: fit["command"] for fit in reversed(works) if facts["platform"] != "cpu"
    }
    for work in ("sft", "sft lora"):
        if work in training:
            lines += [extras.command("train")] if extras.missing("train") else []
            lines.append(training[work])
            break
    return lines

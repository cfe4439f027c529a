"""Shared fixtures. Eight CPU devices, to test sharding everywhere; rank promotion is an error."""

import contextlib
import gc
import importlib.metadata
import logging
import os
import resource
import tempfile
from pathlib import Path

_flags = " --xla_force_host_platform_device_count=8"
_flags += " --xla_backend_optimization_level=0"  # most of the time is compiling: a third less
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones do not know the flag
    _flags += " --xla_cpu_use_fusion_emitters=false"  # compiles a training step in half the time
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + _flags
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# torch beside XLA on two cores: threads that wait for each other take a sixth of its time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tracing makes millions of objects that live; to look through them as often as Python usually does
# takes a quarter of a training test's time.
gc.set_threshold(50_000, 20, 100)
# Many tests compile the same programs, some in processes of their own: once is enough.
_compiled = tempfile.TemporaryDirectory(prefix="ugc_jax-compiled-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _compiled.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")

import pytest  # noqa: E402
import slow  # noqa: E402

SLOW_SECONDS = 1400  # the time limit of a slow test; of others: pyproject.toml


def pytest_addoption(parser):
    """Add --slow."""
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


@pytest.hookimpl(tryfirst=True)  # so that `--slow -m slow` finds all of them, and no other
def pytest_collection_modifyitems(config, items):
    """Skip tests marked slow without --slow; run the tests of slow.FILES first."""
    found = set()
    for item in items:
        cases = [case for case in slow.CASES if case in item.nodeid]
        found.update(cases)
        if cases:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("slow"):
            if config.getoption("--slow"):
                item.add_marker(pytest.mark.timeout(SLOW_SECONDS))
            else:
                item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))
    files = () if any("::" in word for word in config.args) else {item.path for item in items}
    for case in set(slow.CASES) - found:
        if any(path.as_posix().endswith(case.partition("::")[0]) for path in files):
            raise pytest.UsageError(f"tests/slow.py: no test is called {case}")
    ranks = {name: rank for rank, name in enumerate(slow.FILES)}

    def rank(item) -> int:
        path = item.path.as_posix()
        return min((r for name, r in ranks.items() if path.endswith(name)), default=len(ranks))

    items.sort(key=rank)


SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def fresh_logging():
    """No job of another test, nor of a fixture for several, has set up logging for this one."""
    logger = logging.getLogger("ugc_jax")

    def reset():
        logger.setLevel(logging.NOTSET)
        logger.handlers[:], logger.propagate = [], True

    reset()
    yield
    reset()


@pytest.fixture
def highest_precision():
    """Matrix products in full float32, where figures are compared."""
    import jax

    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def no_handles():
    """`with no_handles():` no file can be opened in it."""

    @contextlib.contextmanager
    def block():
        limits, taken = resource.getrlimit(resource.RLIMIT_NOFILE), []
        try:
            with contextlib.suppress(OSError):
                while True:  # the lowest free numbers, so that all above can be refused
                    taken.append(os.open(os.devnull, os.O_RDONLY))
                    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 1, limits[1]))
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for handle in taken:
                os.close(handle)

    return block


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real tokenizer, clips and benchmark files; without it the test is skipped."""
    if not SHARED.is_dir():
        pytest.skip("no shared data beside the project")
    return SHARED


def init_checkpoint(path: Path) -> Path:
    """A checkpoint as `ugc-jax init` writes it: tiny, random, with its own tokenizer."""
    from ugc_jax.jobs import init

    assert init.main(init.InitConfig(output=str(path)), []) == 0
    return path


@pytest.fixture(scope="session")
def whole_checkpoint(tmp_path_factory) -> Path:
    """The checkpoint of `ugc-jax init`, where all of its layers are compared."""
    return init_checkpoint(tmp_path_factory.mktemp("checkpoints") / "whole")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """The same with fewer layers, as most of the time is compiling."""
    import cases

    from ugc_jax.models.qwen2_5_omni.config import SIZES, tiny

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", lambda: cases.fewer_layers(tiny()))
        return init_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session")
def tokenizer(tiny_checkpoint):
    """The ChatTokenizer of the tiny checkpoint."""
    from ugc_jax.hf.tokenizer import load_chat_tokenizer
    from ugc_jax.models.qwen2_5_omni.config import tiny

    return load_chat_tokenizer(tiny_checkpoint, tiny().tokens)


@pytest.fixture(scope="session")
def tiny_captioner(tiny_checkpoint):
    """One Captioner of the tiny checkpoint for all tests, so that each bucket is compiled once."""
    from ugc_jax import Captioner

    return Captioner.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """A folder of short clips of one shape: two with sound, one below, one silent, one broken."""
    from clips import write_clip

    folder = tmp_path_factory.mktemp("clips")
    (folder / "below").mkdir()
    small = dict(seconds=1.2, fps=10, size=(96, 64))
    for seed, name in enumerate(("a.mp4", "b.mp4", "below/c.mp4")):
        write_clip(folder / name, seed=seed, **small)
    write_clip(folder / "silent.mp4", audio=False, **small)
    (folder / "broken.mp4").write_bytes((folder / "a.mp4").read_bytes()[:1000])
    return folder


@pytest.fixture(scope="module")
def one_device():
    """Jobs that ask for all devices get one: most of the time is compilation."""
    import jax

    from ugc_jax import sharding

    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda **_: mesh)
        yield

"""The command line: `ugc-jax JOB [--config=FILE[:ARG]] [--config.key=value ...] [ARGUMENT ...]`."""

import _thread
import difflib
import logging
import os
import sys
import textwrap
import threading
import warnings
from types import ModuleType
from typing import NamedTuple

from ugc_jax import __version__, settings
from ugc_jax.errors import UserError, environment_failure

INTERRUPTED = 130  # exit status of a program that Ctrl-C ended, as in shells


class Job(NamedTuple):
    """summary: one line for --help. arguments: its positional arguments there, or ""."""

    summary: str
    arguments: str = ""


JOBS = {
    "init": Job("write a small random checkpoint with a tokenizer, to try everything offline"),
    "inspect": Job(
        "show what the model would see of each video: frames, sound, tokens, memory", "VIDEO..."
    ),
    "extract": Job("extract frames and sound of clips into records to train from", "MANIFEST"),
    "sft": Job("fine-tune a checkpoint on extracted clips and their captions"),
    "grpo": Job("train a captioner by rewards of the captions that it samples"),
    "plan": Job("compile an sft or grpo config for a TPU slice: does it fit? (no TPU needed)"),
    "caption": Job(
        "caption videos: files, folders or globs in, one JSON line per video out", "VIDEO..."
    ),
    "evaluate": Job(
        "score captions and answers on UGC-VideoCap, with intervals; LLM judge where needed"
    ),
    "compare": Job("tell better from noise: results of evaluate, clip by clip", "RESULT..."),
    "report": Job("make one HTML page of results: tables, plots, clips", "RESULT..."),
    "convert": Job("change a checkpoint's form: Hugging Face full or thinker-only, dtype, Orbax"),
    "world": Job("write the offline world: short clips with captions that can be checked exactly"),
    "bench": Job("time prefill and decoding, and compare with torch if it is installed"),
}


def load_job(name: str) -> ModuleType:
    """Import and return the module of a job; only then, so that `ugc-jax --help` is fast.

    It has a docstring for its --help, `CONFIG`, a frozen dataclass or several (see
    `settings.parse`), and `main(config, arguments)`, which returns the exit status.
    """
    match name:
        case "init":
            from ugc_jax.jobs import init as job
        case "inspect":
            from ugc_jax.jobs import inspect as job
        case "extract":
            from ugc_jax.jobs import extract as job
        case "sft":
            from ugc_jax.jobs import sft as job
        case "grpo":
            from ugc_jax.jobs import grpo as job
        case "plan":
            from ugc_jax.jobs import plan as job
        case "caption":
            from ugc_jax.jobs import caption as job
        case "evaluate":
            from ugc_jax.jobs import evaluate as job
        case "compare":
            from ugc_jax.jobs import compare as job
        case "report":
            from ugc_jax.jobs import report as job
        case "convert":
            from ugc_jax.jobs import convert as job
        case "world":
            from ugc_jax.jobs import world as job
        case "bench":
            from ugc_jax.jobs import bench as job
    return job


def usage() -> str:
    """Return the text of `ugc-jax --help`."""
    jobs = "\n".join(f"  {name:<9}{job.summary}" for name, job in JOBS.items())
    return f"""\
ugc-jax {__version__}: captions of short videos from picture and sound, with Qwen2.5-Omni in JAX

usage: ugc-jax JOB [--config=FILE[:ARG]] [--config.KEY=VALUE ...] [VIDEO ...]

jobs:
{jobs}

ugc-jax JOB --help lists a job's settings. A first try, offline:
  ugc-jax init --config.output=runs/tiny
  ugc-jax caption --config.checkpoint=runs/tiny clip.mp4"""


def job_usage(name: str) -> str:
    """Return the text of `ugc-jax JOB --help`: the job module's docstring and its settings."""
    job = JOBS[name]
    module = load_job(name)
    line = " ".join(filter(None, ["[--config=FILE[:ARG]] [--config.KEY=VALUE ...]", job.arguments]))
    paragraphs = f"ugc-jax {name}: {module.__doc__.strip()}".split("\n\n")
    about = "\n\n".join(textwrap.fill(paragraph, settings.help_width()) for paragraph in paragraphs)
    return f"""\
{about}

usage: ugc-jax {name} {line}

Settings are written --config.KEY=VALUE; --config=FILE[:ARG] takes them from get_config(ARG) of a
Python file.

{settings.help_text(module.CONFIG)}"""


class _ProgressHandler(logging.Handler):
    """Writes log lines to stderr without breaking a progress bar."""

    def emit(self, record: logging.LogRecord):
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


def set_up_logging():
    """Log short lines of this package to stderr; of libraries, only errors."""
    handler = _ProgressHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("ugc_jax")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for name in ("jax", "tensorflow", "transformers", "orbax", "libav"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Orbax logs errors of its threads there, with tracebacks; the failing save raises them, too.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    sys.stdout.reconfigure(errors="surrogateescape")  # file names may be any bytes
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def run(argv: list[str]) -> int:
    """Run the job of the words after the program's name and return the exit status.

    Raises UserError.
    """
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"ugc-jax {__version__}")
        return 0
    if name not in JOBS:
        remedy = f"jobs are {', '.join(JOBS)}; see ugc-jax --help"
        for close in difflib.get_close_matches(name, JOBS, n=1):
            remedy = f"did you mean {close}?"
        raise UserError(f"unknown job {name!r}; {remedy}")
    if "--help" in rest or "-h" in rest:
        print(job_usage(name))
        return 0
    set_up_logging()
    job = JOBS[name]
    module = load_job(name)
    config, arguments = settings.parse(module.CONFIG, rest)
    if arguments and not job.arguments:
        raise UserError(
            f"unexpected {arguments[0]!r}; settings are written --config.KEY=VALUE, see --help"
        )
    if job.arguments and not arguments:
        raise UserError(
            f"nothing to do; usage: ugc-jax {name} [--config.KEY=VALUE ...] {job.arguments}"
        )
    return module.main(config, arguments)


def interrupt_again(unraisable):
    """`sys.unraisablehook` that repeats a lost Ctrl-C.

    A KeyboardInterrupt in a garbage-collection callback (jax has one) cannot be raised from there,
    so it is sent again a moment later.
    """
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        threading.Timer(0.05, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(unraisable)


def main() -> int:
    """Return the exit status.

    0 success, 1 too much failed, 2 a user's mistake or a broken environment, 130 interrupted.
    """
    sys.unraisablehook = interrupt_again
    argv = sys.argv[1:]
    name = " ".join(["ugc-jax", *argv[:1]]) if argv[:1] and argv[0] in JOBS else "ugc-jax"
    try:
        return run(argv)
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        sys.stdout.flush()
        # Not sys.exit: that waits for threads that read clips, and crashes in XLA if it compiles in
        # the background. All files are closed by now.
        os._exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output, such as `head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if (failure := environment_failure(error)) is None:
            raise
        logging.getLogger(__name__).debug("%s", failure, exc_info=True)
        print(f"{name}: {failure}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

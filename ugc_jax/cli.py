"""The command line: `ugc-jax JOB [--key value ...] [ARGUMENT ...]`; settings.py has its grammar."""

import _thread
import difflib
import functools
import logging
import os
import sys
import textwrap
import threading
import warnings
from types import ModuleType
from typing import NamedTuple

from ugc_jax import __version__, settings
from ugc_jax.errors import UserError, environment_failure, require_extra
from ugc_jax.progress import LineHandler
from ugc_jax.remote import is_url

logger = logging.getLogger(__name__)

_LEVELS = {"-v": logging.DEBUG, "-q": logging.WARNING}
_failed: list[Exception] = []  # of the environment, after they were reported
_REMOTE = ("extract", "sft", "grpo")  # jobs whose output may be a URL
INTERRUPTED = 130  # exit status of a program that Ctrl-C ended, as in shells


class Job(NamedTuple):
    """summary: one line for --help. arguments: its positional arguments there, or "".

    extra: of the package (extras.py), without which the job cannot run, or "".
    """

    summary: str
    arguments: str = ""
    extra: str = ""


JOBS = {
    "init": Job("write a small random checkpoint with a tokenizer, to try everything offline"),
    "inspect": Job(
        "show what the model would see of each video: frames, sound, tokens, memory", "VIDEO..."
    ),
    "extract": Job(
        "extract frames and sound of clips into records to train from", "MANIFEST", extra="train"
    ),
    "select": Job(
        "choose which labelled clips to train on: few that stand for all", "LABELS", extra="label"
    ),
    "sft": Job("fine-tune a checkpoint on extracted clips and their captions", extra="train"),
    "grpo": Job("train a captioner by rewards of the captions that it samples", extra="train"),
    "plan": Job(
        "compile a job for a TPU slice: does it fit, how fast is it? (no TPU)", extra="train"
    ),
    "caption": Job(
        "caption videos: files, folders or globs in, one JSON line per video out", "VIDEO..."
    ),
    "label": Job(
        "label clips by a teacher: verified captions with provenance", "VIDEO...", extra="label"
    ),
    "evaluate": Job(
        "score captions and answers on UGC-VideoCap and others, with intervals; LLM judge",
        extra="eval",
    ),
    "compare": Job(
        "tell better from noise: results of evaluate, clip by clip", "RESULT...", extra="eval"
    ),
    "calibrate": Job(
        "tell how much the judge matters: judges on the same captions", "RESULT...", extra="eval"
    ),
    "report": Job("make one HTML page of results: tables, plots, clips", "RESULT...", extra="eval"),
    "annotate": Job(
        "serve a page on which people annotate clips: sound, picture, both", "CLIPS", extra="web"
    ),
    "serve": Job(
        "serve a captioner over HTTP: OpenAI's chat completions, with clips", extra="serve"
    ),
    "convert": Job("change a checkpoint's form: Hugging Face full or thinker-only, dtype, Orbax"),
    "world": Job("write the offline world: short clips with captions that can be checked exactly"),
    "bench": Job("time prefill and decoding, and compare with torch if it is installed"),
    "push": Job("send a trained model to the Hugging Face hub, with its model card", "RUN"),
    "doctor": Job("look at this machine: what works, what fits, what to type next"),
    "completion": Job("print a script that completes commands in bash or zsh", "bash|zsh"),
}


def load_job(name: str) -> ModuleType:
    """Import and return the module of a job; only then, so that `ugc-jax --help` is fast.

    It has a docstring for its --help, `SETTINGS`, a `settings.Schema`, and `main(config,
    arguments)`, which returns the exit status.
    """
    match name:
        case "init":
            from ugc_jax.jobs import init as job
        case "inspect":
            from ugc_jax.jobs import inspect as job
        case "extract":
            from ugc_jax.jobs import extract as job
        case "select":
            from ugc_jax.jobs import select as job
        case "sft":
            from ugc_jax.jobs import sft as job
        case "grpo":
            from ugc_jax.jobs import grpo as job
        case "plan":
            from ugc_jax.jobs import plan as job
        case "caption":
            from ugc_jax.jobs import caption as job
        case "label":
            from ugc_jax.jobs import label as job
        case "evaluate":
            from ugc_jax.jobs import evaluate as job
        case "compare":
            from ugc_jax.jobs import compare as job
        case "calibrate":
            from ugc_jax.jobs import calibrate as job
        case "report":
            from ugc_jax.jobs import report as job
        case "annotate":
            from ugc_jax.jobs import annotate as job
        case "serve":
            from ugc_jax.jobs import serve as job
        case "convert":
            from ugc_jax.jobs import convert as job
        case "world":
            from ugc_jax.jobs import world as job
        case "bench":
            from ugc_jax.jobs import bench as job
        case "push":
            from ugc_jax.jobs import push as job
        case "doctor":
            from ugc_jax.jobs import doctor as job
        case "completion":
            from ugc_jax.jobs import completion as job
    return job


GRAMMAR = """\
--key value or --key=value sets a setting, in any order; - in a key is the same as _. A flag that is
true or false takes a value only with =: --evidence is true, --evidence=false is false. All words
after -- are arguments. --config NAME[:ARG] takes the settings of a config: one of those below or
the path of a Python file with get_config(arg); other flags replace its values. --config.key=value
is an older spelling of --key=value. -v logs more, -q only warnings."""


def usage() -> str:
    """Return the text of `ugc-jax --help`."""
    jobs = "\n".join(f"  {name:<11}{job.summary}" for name, job in JOBS.items())
    return f"""\
ugc-jax {__version__}: captions of short videos from picture and sound, with Qwen2.5-Omni in JAX

usage: ugc-jax JOB [--key value ...] [VIDEO ...]

jobs:
{jobs}

{_filled(GRAMMAR)}

configs: {", ".join(settings.config_names())}
(in {settings.CONFIGS})

ugc-jax JOB --help lists a job's settings; with further flags, what they set. A first try, offline:
  ugc-jax init --output runs/tiny
  ugc-jax caption --checkpoint runs/tiny clip.mp4"""


def job_usage(name: str, argv: list[str]) -> str:
    """Return the text of `ugc-jax JOB --help`: the job module's docstring and its settings.

    argv: the other words of the command line; the help shows the values that they set.
    """
    job, module = JOBS[name], load_job(name)
    line = " ".join(filter(None, ["[--config NAME[:ARG]] [--key value ...]", job.arguments]))
    about = f"ugc-jax {name}: {module.__doc__.strip()}"
    sections = [_filled(about), f"usage: ugc-jax {name} {line}", module.SETTINGS.help_text(argv)]
    if "clip.preset" in (known := module.SETTINGS.settings()):
        from ugc_jax.generate.settings import preset_help

        sections.append(_filled(preset_help("sampling.seed" in known)))
    return "\n\n".join([*sections, "ugc-jax --help explains how flags are written."])


def _filled(text: str) -> str:
    """Paragraphs, wrapped to the width of the help."""
    width = settings.help_width()
    fill = functools.partial(textwrap.fill, width=width, break_on_hyphens=False)
    return "\n\n".join(map(fill, text.split("\n\n")))


def set_up_logging(level: int = logging.INFO):
    """Log short lines of this package to stderr; of libraries, only errors.

    level: of this package: DEBUG also for tracebacks, WARNING without progress.
    """
    logger = logging.getLogger("ugc_jax")
    logger.handlers[:] = [LineHandler()]
    logger.setLevel(level)
    logger.propagate = False
    for name in ("jax", "tensorflow", "transformers", "orbax", "libav"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Orbax (there) and gcsfs log errors with tracebacks, and raise them, too.
    for name in ("absl", "gcsfs"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.stdout.reconfigure(errors="surrogateescape")  # file names may be any bytes
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def run(argv: list[str]) -> int:
    """Run the job of the words after the program's name and return the exit status.

    Raises UserError.
    """
    level = logging.INFO
    while argv[:1] in (["-v"], ["-q"]):  # before the job
        level, argv = _LEVELS[argv[0]], argv[1:]
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name in ("-V", "--version"):
        print(f"ugc-jax {__version__}")
        return 0
    if name not in JOBS:
        remedy = f"jobs are {', '.join(JOBS)}; see ugc-jax --help"
        for close in difflib.get_close_matches(name, [*JOBS, "--help", "--version"], n=1):
            remedy = f"did you mean {close}?"
        raise UserError(f"unknown job {name!r}; {remedy}")
    words, after = _split_at_dashes(rest)
    for flag in _LEVELS.keys() & set(words):
        level = _LEVELS[flag]
    if "--version" in words:
        print(f"ugc-jax {__version__}")
        return 0
    if not {"-h", "--help"}.isdisjoint(words):
        others = [word for word in words if word not in ("-h", "--help", *_LEVELS)]
        print(job_usage(name, others))
        return 0
    set_up_logging(level)
    # Of a GPU's memory; jax takes three quarters by default, and what it leaves serves no job.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    job, module = JOBS[name], load_job(name)
    words = [word for word in words if word not in _LEVELS]
    config, arguments = module.SETTINGS.parse([*words, *after])
    if arguments and not job.arguments:
        raise UserError(
            f"unexpected {arguments[0]!r}; settings are written --KEY VALUE, see --help"
        )
    if job.arguments and not arguments:
        raise UserError(f"nothing to do; usage: ugc-jax {name} [--KEY VALUE ...] {job.arguments}")
    if job.extra:
        require_extra(job.extra, name)
    if name not in _REMOTE and is_url(output := getattr(config, "output", None) or ""):
        raise UserError(
            f"output: {output} is a URL, and {name} writes to this machine; give a path, and copy "
            "it there afterwards"
        )
    return module.main(config, arguments)


def _split_at_dashes(words: list[str]) -> tuple[list[str], list[str]]:
    """The words before `--`, and the others."""
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end:]


def interrupt_again(unraisable):
    """`sys.unraisablehook` that repeats a lost Ctrl-C, and hides what a reported failure causes.

    A KeyboardInterrupt in a garbage-collection callback (jax has one) cannot be raised from there,
    so it is sent again a moment later. When the environment fails (a full disk, no handles), so do
    destructors and exit functions of libraries; the job's one line says why.
    """
    error = unraisable.exc_value
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        threading.Timer(0.05, _thread.interrupt_main).start()
    elif _failed or error is not None and environment_failure(error) is not None:
        logger.debug("after a failure: %r", error)
    else:
        sys.__unraisablehook__(unraisable)


def hide_failures_of_threads(args):
    """`threading.excepthook` for libraries' threads: their work fails in the main thread, too."""
    if args.exc_value is not None and environment_failure(args.exc_value) is not None:
        logger.debug("in a thread: %r", args.exc_value)
    else:
        threading.__excepthook__(args)


def main() -> int:
    """Return the exit status.

    0 success, 1 too much failed, 2 a user's mistake or a broken environment, 130 interrupted.
    """
    sys.unraisablehook, threading.excepthook = interrupt_again, hide_failures_of_threads
    argv = sys.argv[1:]
    first = next((word for word in argv if word not in _LEVELS), None)
    name = f"ugc-jax {first}" if first in JOBS else "ugc-jax"
    try:
        return run(argv)
    except UserError as error:
        logger.debug("where it was found:", exc_info=True)
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
        logger.debug("where it was found:", exc_info=True)
        print(f"{name}: {failure}", file=sys.stderr)
        _failed.append(failure)
        return 2


if __name__ == "__main__":
    sys.exit(main())

"""The optional parts of an installation, pip's extras: what each is for and which libraries it has.

`pip install ugc_jax` has what captioning needs. A job of another subject says which extra it needs
(`cli.JOBS`), and a library that is missing in the middle of other work is named with the extra that
has it (errors.py).
"""

import importlib.util
from typing import NamedTuple


class Extra(NamedTuple):
    """What an extra is for, and the import names of its libraries by their names on PyPI."""

    purpose: str
    libraries: dict[str, str]


# tests/test_extras.py compares them with pyproject.toml.
EXTRAS = {
    "train": Extra("extract, sft, grpo; captions of records", {
        "optax": "optax", "orbax-checkpoint": "orbax.checkpoint", "grain": "grain",
        "array_record": "array_record", "tensorflow-datasets": "tensorflow_datasets",
        "cloudpickle": "cloudpickle",
        "absl-py": "absl", "tensorboardX": "tensorboardX", "rapidfuzz": "rapidfuzz",
    }),
    "eval": Extra("evaluate, compare, report", {
        "rouge-score": "rouge_score", "nltk": "nltk", "scipy": "scipy", "jinja2": "jinja2",
        "matplotlib": "matplotlib",
    }),
    "label": Extra("label, select", {
        "rapidfuzz": "rapidfuzz", "py3langid": "py3langid", "jinja2": "jinja2",
    }),
    "judge": Extra("an LLM judge, or a teacher, behind the OpenAI protocol", {"openai": "openai"}),
    "gemini": Extra("Gemini as the teacher of label", {"google-genai": "google.genai"}),
    "web": Extra("annotate", {
        "fastapi": "fastapi", "uvicorn": "uvicorn", "sqlalchemy": "sqlalchemy",
        "argon2-cffi": "argon2", "python-multipart": "python_multipart", "jinja2": "jinja2",
        "rapidfuzz": "rapidfuzz", "nltk": "nltk", "scipy": "scipy",
    }),
    "serve": Extra("serve", {
        "fastapi": "fastapi", "uvicorn": "uvicorn", "prometheus-client": "prometheus_client",
        "llguidance": "llguidance",
    }),
    "postgres": Extra("annotate on a Postgres database", {"psycopg": "psycopg"}),
    "heif": Extra("HEIC photos", {"pillow-heif": "pillow_heif"}),
    "datasets": Extra("data sets of Hugging Face and Parquet files in extract", {
        "datasets": "datasets",
    }),
    "s3": Extra("clips and records on s3://", {"s3fs": "s3fs"}),
    "gcs": Extra("records and runs on gs://", {"etils": "gcsfs"}),
    "wandb": Extra("metrics in Weights & Biases", {"wandb": "wandb"}),
    "beam": Extra("extract --runner on Apache Beam", {"apache-beam": "apache_beam"}),
    "reference": Extra("bench beside torch and transformers", {
        "torch": "torch", "transformers": "transformers",
    }),
}  # fmt: skip


def missing(extra: str) -> list[str]:
    """Return the libraries of an extra, by their names on PyPI, that are not installed.

    Imports none of them.
    """
    return [name for name, module in EXTRAS[extra].libraries.items() if not _is_there(module)]


def command(*extras: str) -> str:
    """Return the command that installs extras."""
    return f"pip install 'ugc_jax[{','.join(extras)}]'"


def extra_of(module: str) -> str | None:
    """Return the first extra that has the library of a module's name; None without one."""
    top = module.partition(".")[0]
    for name, extra in EXTRAS.items():
        if any(one.partition(".")[0] == top for one in extra.libraries.values()):
            return name
    return None


def _is_there(module: str) -> bool:
    """Whether a module can be found; a submodule of a namespace such as google may be absent."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False

"""ugc_jax.settings: from command-line words and config files to a dataclass, and its help."""

import dataclasses
from typing import Literal

import pytest

from ugc_jax.errors import UserError
from ugc_jax.settings import field_help, flatten, help_text, parse, part


@dataclasses.dataclass(frozen=True)
class Shared:
    """What jobs share. And more about it."""

    fps: float | None = None  # frames a second
    audio: bool = True  # listen


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Shared):
    """Settings of a job.

    steps: this line is no help text.
    """

    checkpoint: str  # where the model is
    # Two lines
    # above the field,
    steps: int = 3  # and one beside it
    # fmt: off
    size: Literal["tiny", "mid"] = (
        "tiny"  # a comment inside
    )
    # fmt: on
    name: str | None = "# no comment"


def parsed(*words):
    return parse(Config, ["--config.checkpoint=c", *words])


def refused(*words) -> str:
    with pytest.raises(UserError) as caught:
        parsed(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "my config.py"
        path.write_text(text)
        return str(path)

    return write


def test_defaults_and_positional_words():
    assert parsed("a.mp4", "--", "--b.mp4") == (Config(checkpoint="c"), ["a.mp4", "--b.mp4"])


@pytest.mark.parametrize(
    ("word", "field", "value"),
    [
        ("fps=2", "fps", 2.0),
        ("fps=.5", "fps", 0.5),
        ("fps=none", "fps", None),
        ("audio=false", "audio", False),
        ("audio=0", "audio", False),
        ("audio", "audio", True),
        ("steps=-7", "steps", -7),
        ("size=mid", "size", "mid"),
        ("name=", "name", ""),
        ("name=3", "name", "3"),
        ("name=a=b", "name", "a=b"),
    ],
)
def test_values(word, field, value):
    result = getattr(parsed(f"--config.{word}")[0], field)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.steps=1.5"], "--config.steps: expected INTEGER, got '1.5'"),
        (["--config.steps=none"], "--config.steps: expected INTEGER, got 'none'"),
        (["--config.fps=fast"], "--config.fps: expected NUMBER|none, got 'fast'"),
        (["--config.audio=maybe"], "--config.audio: expected true|false, got 'maybe'"),
        (["--config.size=huge"], "--config.size: expected tiny|mid, got 'huge'"),
        (["--config.fsp=1"], "--config.fsp: unknown setting; did you mean fps?"),
        (["--config.steps"], "--config.steps needs a value: --config.steps=..."),
        (["--steps=1"], "unknown option --steps; write --config.steps=..."),
        (["--verbose"], "unknown option --verbose; see --help"),
        (["--config"], "--config needs a file: --config=FILE or --config=FILE:ARG"),
        (
            ["--config=no.py"],
            "--config=no.py: no such file; "
            "give the path of a Python file with get_config(arg=None)",
        ),
    ],
)
def test_mistakes_are_told(words, message):
    assert refused(*words) == message


def test_required_setting_is_told():
    with pytest.raises(
        UserError, match=r"--config\.checkpoint=\.\.\. is required: where the model is"
    ):
        parse(Config, [])


def test_file_replaces_defaults_and_overrides_come_on_top(file):
    path = file(
        "from ml_collections import ConfigDict\n"
        "def get_config(arg='x'):\n"
        "    return ConfigDict(dict(fps=2, name=arg, steps=1))\n"
    )
    config, _ = parsed("--config.steps=9", f"--config={path}")
    assert (config.fps, config.name, config.steps, config.audio) == (2.0, "x", 9, True)


def test_argument_of_a_file(file):
    path = file("def get_config(arg=None): return {'name': arg}")
    assert parsed(f"--config={path}:hello:2")[0].name == "hello:2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config():\n  return {'stepz': 1}", "stepz: unknown setting; did you mean steps?"),
        ("def get_config():\n  return {'steps': '1'}", "steps: expected INTEGER, got '1'"),
        ("def get_config():\n  return {'steps': True}", "steps: expected INTEGER, got True"),
        ("def get_config():\n  return 3", "get_config returned int; expected a ConfigDict"),
        ("x = 1", "defines no get_config(arg=None); see configs/ for an example"),
        (
            "def get_config():\n  return 1 / 0",
            ":2: ZeroDivisionError: division by zero; correct this file",
        ),
        ("def get_config(:", "SyntaxError"),
    ],
)
def test_mistakes_in_a_file_are_told(file, text, message):
    path = file(text)
    told = refused(f"--config={path}")
    assert told.startswith(path)
    assert message in told


def test_comments_are_the_help():
    assert field_help(Config) == {
        "fps": "frames a second",
        "audio": "listen",
        "checkpoint": "where the model is",
        "steps": "Two lines above the field, and one beside it",
        "size": "a comment inside",
        "name": "",
    }


def test_describe_shows_own_settings_first():
    text = help_text(Config)
    assert text.splitlines()[0] == "Settings of a job:"
    assert text.index("checkpoint=TEXT") < text.index("What jobs share:") < text.index("fps=NUMBER")
    for row in (
        "where the model is (required)",
        "size=tiny|mid",
        "audio=true|false",
        "listen (default true)",
        "(default 3)",
    ):
        assert row in text
    assert "fps=NUMBER                  frames a second\n" in text


def test_part():
    assert part(Shared, Config(checkpoint="c", fps=1.0)) == Shared(fps=1.0)


# ---- sections ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How weights change. And more about it."""

    learning_rate: float = 1e-5  # the highest
    name: Literal["adamw", "adafactor"] = "adamw"  # the rule


@dataclasses.dataclass(frozen=True)
class Data:
    """What is read."""

    folders: tuple[str, ...]  # of records
    weights: tuple[float, ...] = ()  # of each folder
    sizes: tuple[int, ...] | None = (1, 2)  # of something


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nested:
    """Settings of training."""

    data: Data
    optimizer: Optimizer = Optimizer(learning_rate=2e-5)
    steps: int = 3  # how long


def nested(*words):
    return parse(Nested, ["--config.data.folders=a", *words])[0]


def refused_nested(*words) -> str:
    with pytest.raises(UserError) as caught:
        nested(*words)
    return str(caught.value)


def test_sections_have_their_jobs_defaults():
    assert nested() == Nested(data=Data(("a",)), optimizer=Optimizer(learning_rate=2e-5))


def test_one_setting_of_a_section_leaves_the_others():
    config = nested("--config.optimizer.name=adafactor")
    assert config.optimizer == Optimizer(2e-5, "adafactor")


def test_tuples_are_separated_by_commas():
    config = nested("--config.data.folders=x, y", "--config.data.weights=1,.5")
    assert config.data == Data(("x", "y"), (1.0, 0.5), (1, 2))
    assert nested("--config.data.sizes=none").data.sizes is None
    assert nested("--config.data.sizes=").data.sizes == ()


def test_sections_of_a_file_are_nested_configs(file):
    path = file(
        "from ml_collections import ConfigDict\n"
        "def get_config(arg=None):\n"
        "    config = ConfigDict()\n"
        "    config.steps = 7\n"
        "    config.optimizer = ConfigDict()\n"
        "    config.optimizer.learning_rate = 1\n"
        "    config.data = dict(weights=[1, 2])\n"
        "    return config\n"
    )
    config = nested("--config.data.weights=3", f"--config={path}")
    assert config == Nested(data=Data(("a",), (3.0,)), optimizer=Optimizer(1.0), steps=7)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "--config.optimizer.learnin_rate=1",
            "--config.optimizer.learnin_rate: unknown setting; "
            "did you mean optimizer.learning_rate?",
        ),
        (
            "--config.learning_rate=1",
            "--config.learning_rate: unknown setting; did you mean optimizer.learning_rate?",
        ),
        (
            "--config.optimizer.zzz=1",
            "--config.optimizer.zzz: unknown setting; "
            "known are optimizer.learning_rate, optimizer.name",
        ),
        (
            "--config.optimizer=adamw",
            "--config.optimizer: is a section; set one of optimizer.learning_rate, optimizer.name",
        ),
        (
            "--config.optimizer.name=sgd",
            "--config.optimizer.name: expected adamw|adafactor, got 'sgd'",
        ),
        (
            "--config.data.weights=1,b",
            "--config.data.weights: expected NUMBER,..., got (1.0, 'b')",
        ),
        (
            "--learning-rate=1",
            "unknown option --learning-rate; write --config.optimizer.learning_rate=...",
        ),
    ],
)
def test_mistakes_in_sections_are_told(word, message):
    assert refused_nested(word) == message


def test_mistakes_in_sections_of_a_file_are_told(file):
    path = file("def get_config():\n  return {'optimizer': {'nam': 'adamw'}}")
    told = refused_nested(f"--config={path}")
    assert told == f"{path}: optimizer.nam: unknown setting; did you mean optimizer.name?"
    path = file("def get_config():\n  return {'optimizer': 3}")
    assert "optimizer: is a section" in refused_nested(f"--config={path}")


def test_required_setting_of_a_section_is_told():
    with pytest.raises(UserError, match=r"--config\.data\.folders=\.\.\. is required: of records"):
        parse(Nested, [])


def test_describe_groups_sections():
    text = help_text(Nested)
    assert "\n\nHow weights change:\n  optimizer.learning_rate=NUMBER\n" in text
    assert "the highest (default 2e-05)" in text
    assert "\n  data.folders=TEXT,...       of records (required)\n" in text
    assert "of something (default 1,2)" in text
    assert "optimizer=" not in text


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A plan."""

    name: str = "a"  # of it


@dataclasses.dataclass(frozen=True)
class Other:
    """Another kind."""

    steps: int = 1  # of it
    schedule: Schedule = Schedule()


def test_of_several_the_one_that_has_what_is_given(file):
    assert isinstance(parse((Nested, Other), ["--config.data.folders=x"])[0], Nested)
    assert parse((Nested, Other), ["--config.schedule.name=b"])[0] == Other(1, Schedule("b"))
    path = file("def get_config():\n  return {'steps': 3, 'schedule': {'name': 'b'}}")
    assert parse((Nested, Other), [f"--config={path}"])[0] == Other(3, Schedule("b"))
    with pytest.raises(
        UserError, match=r"schedule\.nam: unknown setting; did you mean schedule\.name"
    ):
        parse((Nested, Other), ["--config.schedule.nam=b"])
    assert help_text((Nested, Other)) == help_text(Nested) + "\n\nA plan:\n" + (
        "  schedule.name=TEXT          of it (default a)"
    )


def test_flatten():
    flat = flatten(nested())
    assert flat["optimizer.learning_rate"] == 2e-5
    assert flat == flatten(dataclasses.asdict(nested()))
    assert list(flat)[-1] == "steps"

"""ugc_jax.settings: from command-line words and config files to a dataclass, and its help."""

import dataclasses
from typing import Literal

import pytest

from ugc_jax import settings
from ugc_jax.errors import UserError
from ugc_jax.settings import (
    CONFIGS,
    Schema,
    check_minimum,
    closest,
    config_names,
    field_help,
    flatten,
    from_options,
    short_names,
)


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
    return Schema(Config).parse(["--config.checkpoint=c", *words])


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


def test_comments_are_read_once(monkeypatch):
    """A command line asks for them several times, and reading them is most of its time."""
    parsed()

    def read(cls):
        raise AssertionError(f"the comments of {cls.__name__} are read again")

    monkeypatch.setattr(settings.inspect, "getsource", read)
    assert parsed("--steps", "4")[0].steps == 4
    assert "and one beside it" in Schema(Config).help_text()


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
        (["--config.fsp=1"], "--config.fsp: unknown setting; did you mean --fps?"),
        (["--config.steps"], "--config.steps needs a value: --config.steps INTEGER"),
        (
            ["--steps", "--audio"],
            "--steps needs a value: --steps INTEGER, or --steps=VALUE for one that begins with --",
        ),
        (["--step", "1"], "--step: unknown setting; did you mean --steps?"),
        (
            ["--verbose"],
            "--verbose: unknown setting; known are checkpoint, steps, size, name, fps, audio",
        ),
        (["--audio", "false"], "--audio false: write --audio=false"),
        (["--config"], "--config needs a value: --config NAME_OR_FILE[:ARG]"),
        (
            ["--config=no.py"],
            "--config no.py: no such file or name; names are caption_upstream, evaluate_upstream, "
            "grpo_3b, grpo_7b, grpo_tiny, label_gemini, sft_3b, sft_3b_20k, sft_7b, tiny, world; "
            "or give the path of a Python file with get_config(arg=None)",
        ),
        (
            ["--config", "configs_/sft3b.py:lora"],
            "--config configs_/sft3b.py:lora: no such file or name; did you mean sft_3b? Or give "
            "the path of a Python file with get_config(arg=None)",
        ),
    ],
)
def test_mistakes_are_told(words, message):
    assert refused(*words) == message


def test_required_setting_is_told():
    with pytest.raises(UserError, match=r"--checkpoint is required: where the model is"):
        Schema(Config).parse([])


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
    text = Schema(Config).help_text()
    assert text.splitlines()[0] == "Settings of a job:"
    shared = text.index("What jobs share:")
    assert text.index("--checkpoint TEXT") < shared < text.index("--fps NUMBER")
    for row in (
        "where the model is (required)",
        "--size tiny|mid",
        "--audio[=false]  ",
        "listen (default true)",
        "(default 3)",
    ):
        assert row in text
    assert "--fps NUMBER                frames a second\n" in text


def test_help_shows_what_the_other_flags_set(file):
    path = file("def get_config():\n  return {'steps': 9}")
    text = Schema(Config).help_text(["--config", path, "--fps", "2", "--audio"])
    for row in ("one beside it (set to 9)", "a second (set to 2.0)", "listen (default true)"):
        assert row in " ".join(text.split())


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
    folders = [] if any("data.folders" in word for word in words) else ["--config.data.folders=a"]
    return Schema(Nested).parse([*folders, *words])[0]


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


def test_a_list_that_is_given_twice_loses_no_value():
    told = refused_nested("--data.folders=x", "--config.data.folders", "y")
    assert told == (
        "--config.data.folders is given twice; give it once, its values separated by commas"
    )
    assert nested("--steps=4", "--steps=5").steps == 5


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
            "did you mean --optimizer.learning_rate?",
        ),
        (
            "--config.learning_rate=1",
            "--config.learning_rate: unknown setting; did you mean --optimizer.learning_rate?",
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
            "--learning_rate: unknown setting; did you mean --optimizer.learning_rate?",
        ),
        (
            "--optimizer.lr=1",
            "--optimizer.lr: unknown setting; did you mean --optimizer.learning_rate?",
        ),
        ("--lr=1", "--lr: unknown setting; did you mean --optimizer.learning_rate?"),
        (
            "--data.learning_rate=1",
            "--data.learning_rate: unknown setting; did you mean --optimizer.learning_rate?",
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
    with pytest.raises(UserError, match=r"--data\.folders is required: of records"):
        Schema(Nested).parse([])


def test_describe_groups_sections():
    text = Schema(Nested).help_text()
    heading = "How weights change (--optimizer.NAME):"
    assert f"\n\n{heading}\n  --optimizer.learning_rate NUMBER\n" in text
    assert "the highest (default 2e-05)" in text
    assert "\n  --data.folders TEXT,...     of records (required)\n" in text
    assert "of something (default 1,2)" in text
    assert "--optimizer " not in text


@dataclasses.dataclass(frozen=True)
class Documented:
    """What a file such as docs/evidence.md (and
    another) tells. And more about it."""

    words: bool = False  # of it


@dataclasses.dataclass(frozen=True)
class WithDocumented:
    """A job."""

    evidence: Documented = Documented()


def test_a_heading_is_the_whole_first_sentence():
    heading = "What a file such as docs/evidence.md (and another) tells (--evidence.NAME):\n"
    assert heading in Schema(WithDocumented).help_text()


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
    both = Schema(Nested, Other)
    assert isinstance(both.parse(["--config.data.folders=x"])[0], Nested)
    assert both.parse(["--config.schedule.name=b"])[0] == Other(1, Schedule("b"))
    path = file("def get_config():\n  return {'steps': 3, 'schedule': {'name': 'b'}}")
    assert both.parse([f"--config={path}"])[0] == Other(3, Schedule("b"))
    with pytest.raises(
        UserError, match=r"schedule\.nam: unknown setting; did you mean --schedule\.name"
    ):
        both.parse(["--config.schedule.nam=b"])
    assert both.help_text() == Schema(Nested).help_text() + (
        "\n\nA plan (--schedule.NAME):\n  --schedule.name TEXT        of it (default a)"
    )


@dataclasses.dataclass(frozen=True)
class Checked:
    """A section with a check."""

    count: int = 1  # of it

    def __post_init__(self):
        check_minimum(self, count=1)


# ---- the grammar of the command line -------------------------------------------------------------

SCHEMA = Schema(
    Nested,
    short=short_names(optimizer=Optimizer) | {"rate": "optimizer.learning_rate"},
    moved={"folder": "data.folders"},
)


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--steps", "7"], "steps", 7),
        (["--steps=7"], "steps", 7),
        (["--steps", "-7"], "steps", -7),
        (["--config.steps", "7"], "steps", 7),
        (["--rate", "0.5"], "optimizer.learning_rate", 0.5),
        (["--learning-rate", "0.5"], "optimizer.learning_rate", 0.5),
        (["--optimizer.learning-rate=0.5"], "optimizer.learning_rate", 0.5),
        (["--config.learning_rate=0.5"], "optimizer.learning_rate", 0.5),
        (["--name", "adafactor"], "optimizer.name", "adafactor"),
        (["--steps", "7", "--config.steps=8"], "steps", 8),
    ],
)
def test_all_spellings_are_one_flag(words, field, value):
    config, arguments = SCHEMA.parse(["clip.mp4", "--data.folders", "a", *words, "b.mp4"])
    assert flatten(config)[field] == value
    assert arguments == ["clip.mp4", "b.mp4"]


def test_a_boolean_swallows_no_argument():
    config, arguments = parsed(
        "--audio", "clip.mp4", "--fps", "1", "-", "--", "-x.mp4", "--audio=false"
    )
    assert (config.audio, config.fps) == (True, 1.0)
    assert arguments == ["clip.mp4", "-", "-x.mp4", "--audio=false"]
    assert not parsed("--audio=false", "clip.mp4")[0].audio


def test_an_unknown_short_option_is_no_argument(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="^unknown option -c; write --key value"):
        parsed("-c", "clip.mp4")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-c").touch()
    assert parsed("-c")[1] == ["-c"]


def test_a_config_of_another_job_is_told(file):
    path = file("def get_config():\n  return {'steps': 1, 'rollout': {'samples': 2}}")
    with pytest.raises(UserError) as caught:
        SCHEMA.parse([f"--config={path}"])
    assert str(caught.value) == (
        f"{path}: rollout.samples: this job has no section rollout; give a config that is for this "
        "job"
    )


def test_an_unknown_argument_of_a_config_is_told():
    with pytest.raises(UserError) as caught:
        parsed("--config", "sft_3b:loar")
    assert str(caught.value) == (
        "--config sft_3b:loar: unknown argument 'loar'; use lora or lora-24gb or lora-80gb or "
        "full-80gb, or none"
    )


def test_an_old_name_of_another_meaning_is_answered_with_the_new_one():
    with pytest.raises(UserError, match=r"^--config\.folder has another name now; write --data\.f"):
        SCHEMA.parse(["--config.folder=a"])


def test_short_names_in_a_file(file):
    path = file("def get_config():\n  return {'rate': 0.5, 'data': {'folders': ['a']}}")
    assert SCHEMA.parse(["--config", path])[0].optimizer.learning_rate == 0.5


def test_flags_by_every_name():
    flags = SCHEMA.flags()
    assert flags["rate"] is flags["optimizer.learning_rate"]
    assert flags["name"].choices == ["adamw", "adafactor"]
    assert {"steps", "data.folders"} < flags.keys()


def test_a_section_names_itself_in_its_errors():
    @dataclasses.dataclass(frozen=True)
    class Whole:
        """A job."""

        checked: Checked = Checked()

    with pytest.raises(UserError, match=r"^checked\.count is 0; use 1 or more"):
        Schema(Whole).parse(["--checked.count", "0"])
    with pytest.raises(UserError, match="^count is 0"):
        Checked(count=0)


def test_configs_by_name():
    assert {"sft_3b", "tiny", "world"} <= set(config_names())
    assert all((CONFIGS / f"{name}.py").is_file() for name in config_names())


def test_config_by_name_has_its_argument(monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text("def get_config(arg=None): return {'name': arg}")
    monkeypatch.setattr("ugc_jax.settings.CONFIGS", tmp_path)
    assert parsed("--config", "mine")[0].name is None
    assert parsed("--config", "mine:a:b")[0].name == "a:b"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("temprature", ["sampling.temperature"]),
        ("lr", ["optimizer.learning_rate"]),
        ("optimizer.temperature", ["sampling.temperature"]),
        ("model", ["checkpoint"]),
        ("checkpont", ["checkpoint"]),
        ("num_frames", ["clip.frames"]),
        ("zzzzz", []),
    ],
)
def test_closest_names(name, expected):
    keys = ["checkpoint", "sampling.temperature", "optimizer.learning_rate", "clip.frames"]
    assert closest(name, keys) == expected


def test_options_of_a_call():
    assert from_options(Shared, {"fps": 2}) == Shared(fps=2)
    with pytest.raises(TypeError, match=r"fps: expected NUMBER\|none, got '2'"):
        from_options(Shared, {"fps": "2"})
    with pytest.raises(UserError, match=r"name: expected adamw\|adafactor, got 'sgd'"):
        from_options(Optimizer, {"name": "sgd"})


def test_flatten():
    flat = flatten(nested())
    assert flat["optimizer.learning_rate"] == 2e-5
    assert flat == flatten(dataclasses.asdict(nested()))
    assert list(flat)[-1] == "steps"

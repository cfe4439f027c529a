"""The columns of a manifest's row, in the forms of several tools -> one conversation.

| form | dialogue | media |
|---|---|---|
| as released, ms-swift | messages: role, content, loss | videos, images, audios |
| OpenAI, transformers | messages whose content is a list of parts | in the parts |
| LLaVA, ShareGPT, LLaMA-Factory, if asked for | conversations: from, value | video, image, audio |
| ms-swift, Alpaca, TRL | query, response, history; instruction, input, output; prompt, completion |
| captions | caption | path, video |

A null is an absent column. What can be read in one way only is read; a row that has more than would
be read (a clip without a place, a second answer, a flag that training does not know) is refused
with a ValueError that names the column and the remedy: nothing is left out in silence.
"""

import json
import mimetypes
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from ugc_jax import remote
from ugc_jax.data.prompt import KINDS, ROLES

DIALOGUES = ("messages", "conversations", "conversation")
PATHS = ("path", "video")  # columns of a file of any kind, where no dialogue says which
_FILES = {**{f"{kind}s": kind for kind in KINDS}, **{kind: kind for kind in KINDS}, "path": None}
_QUESTIONS = ("query", "instruction", "question", "prompt")
_ANSWERS = ("caption", "response", "output", "answer", "completion")
READ = frozenset(_FILES)  # columns of files
# Columns that say what is to be shown of a file, where other tools have them; settings do here.
UNHEEDED = (
    "start", "end", "start_time", "end_time", "video_start", "video_end", "start_sec", "end_sec",
    "timestamp", "timestamps", "fps", "nframes", "num_frames", "min_pixels", "max_pixels",
    "resized_height", "resized_width", "use_audio_in_video",
)  # fmt: skip
KNOWN = frozenset(
    (*DIALOGUES, *_FILES, *_QUESTIONS, *_ANSWERS, "input", "history", "system", "solution")
)
# Columns of other tools that change what a model is shown or learns, and why they are refused.
_REFUSED = {
    **dict.fromkeys(
        ("rejected_response", "rejected", "rejected_messages", "chosen"),
        "is of a preference pair, which no job here learns from; keep the better answer alone",
    ),
    **dict.fromkeys(("loss", "loss_scale"), "is of a turn; write it into the turn"),
    **dict.fromkeys(
        ("loss_mask", "mask_history", "train_on_input", "train_on_inputs", "train_on_prompt"),
        "says which turns are learned; write loss into the turns (all assistant's are, by default)",
    ),
    **dict.fromkeys(
        ("loss_weight", "sample_weight"),
        "weighs the row, which no job here does; repeat rows, or leave them out",
    ),
    "objects": "has boxes to write into the text, which is not done here; write them there",
    "tools": "has tools, which the prompt has no place for",
    "functions": "has tools, which the prompt has no place for",
}
# Columns that often are an answer under a name that no form has.
_LIKE_ANSWERS = (
    "text", "captions", "description", "target", "targets", "answers", "ground_truth", "responses",
    "outputs", "completions",
)  # fmt: skip
_LIKE_FILES = re.compile(
    r"(?:video|image|audio|clip|media|sound|music|picture|photo|img|vid|wav|speech|file|frame)s?"
    r"(?:_?(?:path|file|filename|file_name|url|uri|src|location)s?)?"
    r"|(?:path|filename|file_name|filepath)s?"
)
_TAG = re.compile(f"<({'|'.join(KINDS)})>")
# How other tools write such a place.
_FOREIGN_TAG = re.compile(
    r"<\|?/?(?:vision|video|image|audio|img|vid|speech|sound)(?:[ _-]?\w{1,20})?\|?>", re.IGNORECASE
)
_NAMES_OF_ROLES = {"human": "user", "gpt": "assistant"} | {role: role for role in ROLES}
_LOSS = ("loss", "loss_scale", "weight", "train", "training")  # of a turn, in several tools
_FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_URL = re.compile(
    r"\s*(?:[a-z][a-z0-9+.-]+:(?=//)|(?:data|blob|magnet|https?|ftp):"
    r"|www\.[^/\s]+/|(?:m\.)?youtu(?:be\.com|\.be)/)",
    re.IGNORECASE,
)
_PAGE = re.compile(r"\w+://(?:(?:www|m)\.)?youtu(?:be\.com|\.be)/", re.IGNORECASE)
_TEXT_TYPES = ("text", "input_text", "output_text")


class Conversation(NamedTuple):
    """One row, read.

    messages: as `prompt.pieces` takes them; media are parts in their places. media: the paths of
    these parts in order, as the row has them. solution: the reference of a GRPO row. extra: the
    columns that were not read.
    """

    messages: list[dict]
    media: list[str]
    solution: str | None
    extra: dict


def read_columns(
    columns: Mapping[str, Any], question: str, system: str, conversations: bool = False
) -> Conversation:
    """Return the conversation of a row's columns.

    question, system: what is asked, and the system prompt, where the row has none of its own.
    conversations: read a dialogue of that name, in which tools differ (names of roles, places of
    media), instead of refusing it.
    Raises ValueError, in one line with the remedy, for a row that cannot be read as a whole.
    """
    extra = {name: value for name, value in columns.items() if name}
    _check_names(extra)
    row = {name: extra.pop(name) for name in [*extra] if name in KNOWN}
    has_no_caption = "caption" in row and _absent(row["caption"])
    row = {name: _decoded(value, name) for name, value in row.items() if not _absent(value)}
    given = [name for name in DIALOGUES if name in row]
    if isinstance(row.get("prompt"), list):
        given.append("prompt")
    if len(given) > 1:
        raise ValueError(f"has both {' and '.join(given)}; keep the one to read")
    if not conversations and given and given[0].startswith("conversation"):
        raise ValueError(
            f"{given[0]} is the form of LLaVA and ShareGPT; add --conversations=true to read it "
            "(human asks, gpt answers), or write messages"
        )
    files = _Files({name: row.pop(name) for name in [*_FILES] if name in row}, bool(given))
    solution = _text(row.pop("solution"), "solution") if "solution" in row else None
    if not given and not files.paths:
        alike = next((name for name, value in extra.items() if _is_file(name, value)), None)
        hint = f"; if {alike} is a file, name this column path" if alike else ""
        has_url = (name for name, value in extra.items() if any(map(_URL.match, _strings(value))))
        if not alike and (url := next(has_url, None)):
            hint = f"; if {url} is where the clip is, name this column path"
        raise ValueError(f"has neither messages nor {' nor '.join(PATHS)}{hint}")
    if has_no_caption and not given and not solution and not {*_QUESTIONS, *_ANSWERS} & row.keys():
        raise ValueError(
            "caption is empty, and there is nothing else to learn; leave the column out"
        )
    turns = _dialogue(given[0], row) if given else _flat(row, extra, question)
    if "system" in row and row["system"] != "":
        turns = _with_system(turns, _text(row.pop("system"), "system"))
    row.pop("system", None)
    _check_turns(turns)
    files.check_others(extra, turns)
    messages = files.place(turns)
    _check_answers(messages, solution, row, extra)
    if messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return Conversation(messages, files.placed, solution, row | extra)


def about_file(path: str, question: str, system: str) -> Conversation:
    """Return the question about one file, which has no row."""
    kind = file_kind(path)
    content = [{"type": kind, kind: path}, {"type": "text", "text": question}]
    messages = [{"role": "system", "content": system}, {"role": "user", "content": content}]
    return Conversation(messages, [path], None, {})


def file_kind(path: str) -> str:
    """Return the kind of a file by its name; "video" if the name does not say."""
    kind = (mimetypes.guess_type(path)[0] or "video").partition("/")[0]
    return kind if kind in KINDS else "video"


def _check_names(columns: dict):
    """Raise ValueError for columns that are refused, or nearly have a known name.

    `label` is the provenance of a row of the job label, and stays as it is.
    """
    if isinstance(columns.get("label"), dict) and "reason" in columns:
        raise ValueError(
            f"was rejected by label ({columns['reason']!s:.60}); train from label's output, or "
            "remove the column reason of a row that you take all the same"
        )
    for name, value in columns.items():
        if _absent(value) or value in ("", [], {}, "[]", "{}", "null"):
            continue
        if name in _REFUSED:
            raise ValueError(f"{name} {_REFUSED[name]}, and remove this column")
        if name in ("label", "kto_tag") and value is False:
            raise ValueError(f"{name} is false: the answer is a bad one, not to be learned")
        known = name.strip().lower().replace("-", "_")
        if known != name and known in KNOWN:
            raise ValueError(f"{name!r} is no column that is read; name it {known}, or otherwise")


# ---- the dialogue --------------------------------------------------------------------------------


def _dialogue(column: str, row: dict) -> list[dict]:
    """Return the turns of a column with a list of them, and of TRL's `completion`."""
    turns = row.pop(column)
    if column == "prompt" and "completion" in row:
        answer = row.pop("completion")
        answer = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
        turns = turns + answer if isinstance(answer, list) else None
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"{column} is not a list of objects with role and content")
    return [_turn(turn, column) for turn in turns]


def _turn(given: dict, column: str) -> dict:
    """Return {"role", "content"} of a turn, and "loss" if it is not to be learned.

    content: text, or for a user a list of parts.
    """
    turn = {name: value for name, value in given.items() if not _absent(value)}
    if {"role", "content"} <= turn.keys() or not {"from", "value"} & turn.keys():
        label, role, content = "role", turn.pop("role", None), turn.pop("content", None)
        known = {role: role for role in ROLES}
    else:
        label, role, content = "from", turn.pop("from", None), turn.pop("value", None)
        known = _NAMES_OF_ROLES
    if not isinstance(role, str) or role not in known:
        raise ValueError(f"{column}: {label} {role!r:.40} is none of {', '.join(known)}")
    role = known[role]
    learned = _learned(turn, role, column)
    if left := [name for name, value in turn.items() if value not in ("", [], {})]:
        raise ValueError(
            f"{column}: the {role}'s turn has {' and '.join(left)}, which the prompt has no place "
            "for; write it into the text, or remove it"
        )
    if isinstance(content, list):
        content = [_part(part, role, column) for part in content]
        if role != "user":
            content = "".join(part["text"] for part in content)
    if isinstance(content, str) or not content:
        content = _text(content, f"the {role}'s content")
    if not isinstance(content, str | list):
        raise ValueError(f"the {role}'s content is {content!r:.60}")
    flag = {"loss": False} if role == "assistant" and not learned else {}
    return {"role": role, "content": content} | flag


def _learned(turn: dict, role: str, column: str) -> bool:
    """Remove the flags of a turn and return whether its answer is learned."""
    flags = {name: turn.pop(name) for name in _LOSS if name in turn}
    values = {_FLAGS.get(str(flag).strip().lower()) for flag in flags.values()}
    if not flags:
        return True
    if None in values or len(values) > 1:
        raise ValueError(
            f"{column}: {', '.join(f'{name} {flag!r:.40}' for name, flag in flags.items())} of the "
            f"{role}'s turn; a turn is learned (true) or not (false), and nothing between"
        )
    (value,) = values
    if value and role != "assistant":
        raise ValueError(
            f"{column}: {next(iter(flags))} is true of the {role}'s turn; only an assistant's can "
            "be; remove it there"
        )
    return value


def _part(given: object, role: str, column: str) -> dict:
    """Return a part of a list content: a text, or a medium with its path, None if it is listed."""
    if isinstance(given, str):
        return {"type": "text", "text": given}
    if not isinstance(given, dict):
        raise ValueError(f"{column}: a part of the {role}'s content is {given!r:.60}")
    part = {name: value for name, value in given.items() if not _absent(value)}
    kind = part.pop("type", None)
    if kind in _TEXT_TYPES or (kind is None and "text" in part):
        text = part.pop("text", None)
        if isinstance(text, str) and not part:
            return {"type": "text", "text": text}
        kind = None
    if kind == "input_audio":
        raise ValueError(f"{column}: input_audio has the sound itself; save it to a file")
    names = [name for kind_ in KINDS for name in (kind_, f"{kind_}_url")]
    kind = kind or next((name for name in names if name in part), None)
    medium = str(kind).removesuffix("_url")
    if medium not in KINDS:
        raise ValueError(
            f"{column}: a part {given!r:.60} is none of text, {', '.join(KINDS)} and has no place "
            "in the prompt; remove it"
        )
    if role != "user":
        raise ValueError(f"{column}: the {role}'s turn has a file; only a user's turn may")
    keys = [name for name in (medium, f"{medium}_url", "path", "url") if name in part]
    path = part.pop(keys[0]) if keys else None
    if part:
        raise ValueError(
            f"{column}: a {medium} has {' and '.join(part)}, a setting of one file that is not "
            "heeded; remove it, or set --fps, --start and so on for all files"
        )
    return {"type": medium, medium: None if path is None else _path(path, column)}


def _flat(row: dict, extra: dict, question: str) -> list[dict]:
    """Return the turns of a row whose columns are the question and the answer."""
    asked = [name for name in _QUESTIONS if name in row]
    answers = [name for name in _ANSWERS if name in row]
    for names in (asked, answers):
        if len(names) > 1:
            raise ValueError(f"has both {' and '.join(names)}; keep the one to use")
    if answers and answers != ["caption"] and not asked:
        raise ValueError(
            f"{answers[0]} answers no question of the row; name it caption, or give its question"
        )
    turns = [
        {"role": role, "content": _text(text, "history")}
        for pair in _pairs(row.pop("history", []))
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    context = row.pop("input", "")
    if asked:
        question = _text(row.pop(asked[0]), asked[0])
        for name in ("options", "choices", "candidates"):
            if not all(text in question for text in _strings(extra.get(name))):
                raise ValueError(
                    f"{name} are not in the {asked[0]}, and are not shown; write them into it"
                )
    if context != "":
        if asked != ["instruction"]:
            raise ValueError("input belongs to an instruction, and there is none; name it query")
        question += "\n" + _text(context, "input")
    if turns and not asked:
        raise ValueError("history needs a query after it")
    turns.append({"role": "user", "content": question})
    if answers:
        text = _text(row.pop(answers[0]), answers[0])
        turns.append({"role": "assistant", "content": text})
    return turns


def _pairs(history: object) -> list:
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in history
    ):
        raise ValueError("history is not a list of [query, response] pairs")
    return history


def _with_system(turns: list[dict], system: str) -> list[dict]:
    if turns[:1] and turns[0]["role"] == "system":
        if turns[0]["content"] != system:
            raise ValueError("system differs from the system's turn; keep one of them")
        return turns
    return [{"role": "system", "content": system}, *turns]


def _check_turns(turns: list[dict]):
    """Raise ValueError unless turns are an optional system, then users and single assistants."""
    roles = [turn["role"] for turn in turns]
    if "user" not in roles:
        raise ValueError("messages has no user's turn")
    if "system" in roles[1:]:
        raise ValueError("has a system's turn after others; only the first may be the system's")
    if roles[roles[0] == "system"] == "assistant":
        raise ValueError("begins with an assistant's turn; put the user's before it")
    if any(pair == ("assistant", "assistant") for pair in zip(roles, roles[1:], strict=False)):
        raise ValueError("has two assistant's turns in a row; join them, or put a user's between")


def _check_answers(messages: list[dict], solution: str | None, row: dict, extra: dict):
    """Raise ValueError for columns beside a dialogue that hold another, or its missing answer."""
    texts = [_joined(turn) for turn in messages if turn["role"] == "user"]
    last = messages[-1]
    is_answered = last["role"] == "assistant"
    for name, value in (row | extra).items():
        if isinstance(value, str) and not value.strip() or name == "dialogue":
            continue
        turns = value if isinstance(value, list) else []
        if any(isinstance(turn, dict) and {"role", "from", "user"} & turn.keys() for turn in turns):
            raise ValueError(f"{name} is a dialogue beside the one that is read; keep one of them")
        if name in ("query", "instruction", "prompt", "input", "history") and not (
            isinstance(value, str) and any(value in text for text in texts)
        ):
            remedy = "keep the one to read"
        elif name in ("response", "output", "completion") and is_answered:
            if isinstance(value, str) and value == last["content"]:
                continue
            remedy = "keep the answer to learn"
        elif (
            name in (*_ANSWERS, *_LIKE_ANSWERS)
            and not (is_answered or solution)
            and isinstance(value, str | list)
        ):
            remedy = (
                "name it caption, or solution where only rewards use it"
                if name in extra and "caption" not in row
                else "append it to the dialogue, or name it solution where only rewards use it"
            )
        else:
            continue
        raise ValueError(f"{name} stands beside the dialogue and is not read; {remedy}")


def _joined(turn: dict) -> str:
    content = turn["content"]
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


# ---- the media -----------------------------------------------------------------------------------


class _Files:
    """The files that a row's columns list, and their way into the user's turns.

    paths: {kind: [path]} still without a place. placed: the paths with one, in order.
    """

    def __init__(self, columns: dict, is_dialogue: bool):
        """is_dialogue: whether the row has turns; without, the name of a file tells its kind."""
        self.paths: dict[str, list[str]] = {}
        self.placed: list[str] = []
        self._listed: list[str] = []
        self._columns: dict[str, str] = {}  # that list a kind
        for name, value in columns.items():
            paths = _paths(value, name)
            if not paths:
                continue
            kind = _FILES[name]
            if name in PATHS and (kind is None or not is_dialogue):
                kind = file_kind(paths[0])
            if kind in self.paths:
                raise ValueError(f"has both {self._columns[kind]} and {name}; keep one of them")
            self.paths[kind], self._columns[kind] = paths, name
            self._listed += paths

    def check_others(self, extra: dict, turns: list[dict]):
        """Raise ValueError for further columns that name files, which would not be shown.

        Where no file is shown at all, any column counts; else the name has to speak of a file.
        """
        parts = [
            part for turn in turns if isinstance(turn["content"], list) for part in turn["content"]
        ]
        shown = self._listed + [
            part.get(part["type"]) or "" for part in parts if "text" not in part
        ]
        known = {os.path.basename(path) for path in shown}
        for name, value in extra.items():
            paths = [path for path in _strings(value) if os.path.basename(path) not in known]
            if shown and all(map(_URL.match, paths)):  # where it is from
                continue
            if not _is_file(name, paths) and (shown or not any(map(_is_media, paths))):
                continue
            raise ValueError(
                f"{name} names a file that is not read; name this column video, image or audio, or "
                "otherwise if it is not to be shown"
            )

    def place(self, turns: list[dict]) -> list[dict]:
        """Return messages in which each file is a part at its tag, or has a part of its own.

        Files of one kind without any tag come before the first user's text, as in ms-swift.
        """
        messages = []
        for turn in turns:
            if turn["role"] == "user":
                content = turn["content"]
                parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
                turn = turn | {"content": list(self._parts(parts))}
            messages.append(turn)
        for kind in [*self.paths]:  # files that parts name may be listed, too
            named = [
                part[kind]
                for turn in messages
                if turn["role"] == "user"
                for part in turn["content"]
                if part["type"] == kind
            ]
            if not self.paths[kind] or self.paths[kind] == named:
                del self.paths[kind]
        if self.paths:
            self._place_first(messages)
        return messages

    def _parts(self, parts: list[dict]) -> Iterator[dict]:
        for part in parts:
            kind = part["type"]
            if kind != "text":
                yield self._medium(kind, part[kind])
                continue
            for place, text in enumerate(_TAG.split(part["text"])):
                if place % 2:
                    yield self._medium(text, None)
                elif text:
                    yield {"type": "text", "text": text}

    def _medium(self, kind: str, path: str | None) -> dict:
        if path is None:
            if not self.paths.get(kind):
                column = self._columns.get(kind, f"{kind}s")
                raise ValueError(f"messages have more <{kind}> than {column} lists files")
            path = self.paths[kind].pop(0)
        self.placed.append(path)
        return {"type": kind, kind: path}

    def _place_first(self, messages: list[dict]):
        """Put the rest of the files before the first user's text; ValueError if that is a guess."""
        ((kind, paths), *others) = self.paths.items()
        column, texts = self._columns[kind], [_joined(turn) for turn in messages]
        foreign = next(filter(None, map(_FOREIGN_TAG.search, texts)), None)
        if foreign is not None:
            raise ValueError(
                f"{column} lists files, and the text has {foreign[0]}; write <{kind}> in a user's "
                "text where the file belongs"
            )
        if others:
            names = " and ".join(self._columns[name] for name in self.paths)
            raise ValueError(f"{names} list files without a tag; write <{kind}> and so on for each")
        if self.placed:
            raise ValueError(
                f"{column} lists {len(paths)} more files than messages have <{kind}>; write it "
                "where each belongs"
            )
        first = next(turn for turn in messages if turn["role"] == "user")
        first["content"] = [*({"type": kind, kind: path} for path in paths), *first["content"]]
        self.placed = [*paths]


def _paths(value: object, column: str) -> list[str]:
    """Return the paths in a column of media."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str | dict) or _absent(one) for one in values):
        single = column in PATHS and not isinstance(value, list)
        wrong = f"is {value!r:.60}, not a path" if single else "is not a list of paths"
        raise ValueError(f"{column} {wrong}")
    if any(map(_absent, values)):
        raise ValueError(f"{column} lists null; remove it, and its tag")
    return [_path(one, column) for one in values]


def _path(value: object, column: str) -> str:
    """Return a path or a URL as text, of one or of an object {"path": ...}.

    Raises ValueError for what is neither, and for a URL whose protocol fsspec does not know.
    """
    if isinstance(value, dict):
        given = {name: one for name, one in value.items() if not _absent(one) and one != ""}
        if "bytes" in given:
            raise ValueError(f"{column} has a file's bytes; save them to a file and give its path")
        names = [name for name in ("path", "url") if name in given]
        if len(names) != 1 or len(given) != 1:
            others = ", ".join(given) or "nothing"
            raise ValueError(f"{column} is an object of {others}; give the path alone")
        value = given[names[0]]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{column} is {value!r:.60}, not a path")
    if value.startswith("file://"):
        parts = urlsplit(value)
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise ValueError(f"{column} is {value!r:.80}, of another machine; give a local path")
        value = unquote(parts.path)
    if _URL.match(value):
        scheme = remote.protocol(value)
        if not scheme or not remote.is_known(scheme) or _PAGE.match(value):
            raise ValueError(
                f"{column} is a URL that is not read ({value:.60}); download it and give its path"
            )
        return value
    if re.match(r"[A-Za-z]:[\\/]", value):
        raise ValueError(
            f"{column} is a path of Windows ({value:.60}); give it as this machine has it"
        )
    try:
        if b"\0" in os.fsencode(value):
            raise ValueError
    except ValueError:
        raise ValueError(f"{column} is {value!r:.60}, not a path") from None
    return os.path.expanduser(value) if value.startswith("~/") else value


def _is_file(name: str, value: object) -> bool:
    """Whether a column that no form has seems to name files."""
    if not _LIKE_FILES.fullmatch(name.strip().lower().replace("-", "_")):
        return False
    return any(_is_media(text) or re.fullmatch(r"\S*[/\\]\S*", text) for text in _strings(value))


def _is_media(text: str) -> bool:
    """Whether a text is the name of a picture, a sound or a video."""
    return (mimetypes.guess_type(text)[0] or "").partition("/")[0] in KINDS


def _strings(value: object) -> list[str]:
    """Return the texts in a column, also in its lists and objects."""
    if isinstance(value, dict):
        value = [*value.values()]
    if isinstance(value, list):
        return [text for one in value for text in _strings(one)]
    return [value] if isinstance(value, str) else []


# ---- values --------------------------------------------------------------------------------------


def _absent(value: object) -> bool:
    """Whether a value is null, or NaN, as tables without nulls write it."""
    return value is None or value != value


def _decoded(value: object, name: str) -> object:
    """Return a list or an object that is written as JSON text, as a CSV table has it."""
    if not isinstance(value, str) or name not in (*DIALOGUES, *_FILES, "history", "prompt"):
        return value
    text = value.strip()
    if text[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(text)
    except ValueError:
        if re.match(r"\[?\s*[{'\"]|\{", text):
            raise ValueError(f"{name} is not JSON: {text:.40}; write it with json.dumps") from None
        return value


def _text(text: object, name: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name} is {'empty' if text in ('', None) else f'{text!r:.60}'}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} is not UTF-8 text: {text!r:.60}") from None
    return text

"""Print a script with which a shell completes jobs, flags, their values and names of configs.

For bash: ugc-jax completion bash > ~/.local/share/bash-completion/completions/ugc-jax

For zsh: ugc-jax completion zsh > DIR/_ugc-jax, where DIR is in $fpath before compinit is called.
"""

import dataclasses
import shlex

from ugc_jax import __version__
from ugc_jax.errors import UserError
from ugc_jax.jobs import (
    annotate,
    bench,
    calibrate,
    caption,
    compare,
    convert,
    doctor,
    evaluate,
    extract,
    grpo,
    init,
    inspect,
    label,
    plan,
    push,
    report,
    select,
    serve,
    sft,
    world,
)
from ugc_jax.settings import Schema, Setting, config_names

SHELLS = ("bash", "zsh")


@dataclasses.dataclass(frozen=True)
class CompletionConfig:
    """Settings of completion: none."""


SETTINGS = Schema(CompletionConfig)

# The modules of the jobs; in `_TAKE_FILES` those whose arguments are files.
_JOBS = {
    "init": init,
    "inspect": inspect,
    "extract": extract,
    "select": select,
    "sft": sft,
    "grpo": grpo,
    "plan": plan,
    "caption": caption,
    "label": label,
    "evaluate": evaluate,
    "compare": compare,
    "calibrate": calibrate,
    "report": report,
    "annotate": annotate,
    "serve": serve,
    "convert": convert,
    "world": world,
    "bench": bench,
    "push": push,
    "doctor": doctor,
}
_TAKE_FILES = (
    "inspect", "label", "extract", "select", "caption", "compare", "calibrate", "report",
    "annotate", "push",
)  # fmt: skip
_ABOUT_HELP = "show the settings of the job"
_ABOUT_CONFIG = "take the settings of a config"

# An empty COMPREPLY makes bash complete file names, by -o default.
_BASH = """\
# Completion of ugc-jax {version} for bash, written by: ugc-jax completion bash
_ugc_jax() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" last="${{COMP_WORDS[COMP_CWORD - 1]}}"
    local configs="{configs}"
    local job= dashes= flag= equals= flags= switches= numbers= choices= files= i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "${{COMP_WORDS[i]}}" in
            --) dashes=1 ;;
            -*) ;;
            *) job="${{job:-${{COMP_WORDS[i]}}}}" ;;
        esac
    done
    # --key=value is three words to readline.
    case "$current" in
        =) flag="$last" equals=1 current= ;;
        *) case "$last" in
            =) flag="${{COMP_WORDS[COMP_CWORD - 2]}}" equals=1 ;;
            --?*) flag="$last" ;;
        esac ;;
    esac
    flag="$(_ugc_jax_flag "$flag")"
    case "$job" in
{cases}
        completion) choices="{shells}" ;;
        *) choices="{jobs} --help --version" ;;
    esac
    case " $switches " in *" $flag "*) [ -n "$equals" ] && choices="true false" || flag= ;; esac
    if [ -n "$dashes" ]; then
        return
    elif [ -n "$choices" ]; then
        COMPREPLY=($(compgen -W "$choices" -- "$current"))
    elif [ "$flag" = --config ]; then
        local IFS=$'\\n'
        COMPREPLY=($(compgen -W "${{configs// /$IFS}}" -- "$current") $(compgen -f -- "$current"))
        compopt -o filenames 2>/dev/null
    elif [[ -n $flag && " $numbers " = *" $flag "* ]]; then
        compopt +o default 2>/dev/null
    elif [[ $current = -* || ( -z $flag && -z $files ) ]]; then
        COMPREPLY=($(compgen -W "--help --config $flags" -- "$(_ugc_jax_flag "$current")"))
    fi
}}

# --max-new-tokens and --config.max_new_tokens are --max_new_tokens.
_ugc_jax_flag() {{
    local name="${{1#-}}"
    name="${{name#-}}"
    name="${{name//-/_}}"
    [ -z "$1" ] || echo "--${{name#config.}}"
}}

complete -o default -F _ugc_jax ugc-jax
"""

_BASH_JOB = """\
        {job})
            files={files}
            switches="{switches}"
            numbers="{numbers}"
            flags="{flags}"
            case "$flag" in
{choices}
            esac
            ;;"""

_ZSH = """\
#compdef ugc-jax
# Completion of ugc-jax {version} for zsh, written by: ugc-jax completion zsh
_ugc-jax() {{
    local -a jobs=(
{jobs}
    )
    while ((CURRENT > 2)) && [[ $words[2] = -* ]]; do
        shift words
        ((CURRENT--))
    done
    if ((CURRENT == 2)); then
        _describe job jobs -- && return
        _arguments '--help[show the jobs]' '--version[show the version]'
        return
    fi
    shift words
    ((CURRENT--))
    case $words[1] in
{cases}
        completion) _arguments '1:shell:({shells})' ;;
    esac
}}

_ugc-jax_config() {{
    local -a configs=({configs})
    _describe config configs
    _files -g '*.py'
}}

if [[ $funcstack[1] = _ugc-jax ]]; then _ugc-jax "$@"; else compdef _ugc-jax ugc-jax; fi
"""


def main(config: CompletionConfig, shells: list[str]) -> int:
    """Print the script of the shell. Raises UserError for another shell."""
    if len(shells) != 1 or shells[0] not in SHELLS:
        raise UserError(f"no completion for {' '.join(shells)!r}; name one of {', '.join(SHELLS)}")
    print(_bash() if shells == ["bash"] else _zsh(), end="")
    return 0


def _bash() -> str:
    return _BASH.format(
        version=__version__,
        jobs=" ".join([*_JOBS, "completion"]),
        shells=" ".join(SHELLS),
        configs=" ".join(config_names()),
        cases="\n".join(map(_bash_job, _JOBS)),
    )


def _bash_job(job: str) -> str:
    flags = _flags(job)
    by_choices: dict[str, list[str]] = {}
    for flag, setting in flags.items():
        if setting.choices:
            by_choices.setdefault(" ".join(setting.choices), []).append(flag)
    return _BASH_JOB.format(
        job=job,
        files="1" if job in _TAKE_FILES else "",
        flags=" ".join(flags),
        switches=" ".join(flag for flag, setting in flags.items() if bool in setting.kinds),
        numbers=" ".join(flag for flag, setting in flags.items() if _is_number(setting)),
        choices="\n".join(
            f'                {" | ".join(names)}) choices="{choices}" ;;'
            for choices, names in by_choices.items()
        ),
    )


def _zsh() -> str:
    about = {job: module.__doc__.partition("\n")[0] for job, module in _JOBS.items()}
    about["completion"] = __doc__.partition("\n")[0]
    return _ZSH.format(
        version=__version__,
        jobs="\n".join(f"        {shlex.quote(f'{job}:{text}')}" for job, text in about.items()),
        shells=" ".join(SHELLS),
        configs=" ".join(config_names()),
        cases="\n".join(map(_zsh_job, _JOBS)),
    )


def _zsh_job(job: str) -> str:
    specs = [
        f"--help[{_ABOUT_HELP}]",
        f"--config=[{_ABOUT_CONFIG}]:name or file:_ugc-jax_config",
        *(_zsh_flag(flag, setting) for flag, setting in _flags(job).items()),
    ]
    if job in _TAKE_FILES:
        specs.append("*:file:_files")
    # The matcher makes - and _ equal.
    lines = [f"        {job}) _arguments -M 'm:{{-_}}={{_-}}'", *map(shlex.quote, specs)]
    return " \\\n            ".join(lines) + " ;;"


def _zsh_flag(flag: str, setting: Setting) -> str:
    """The flag as `_arguments` takes it: --flag=[about it]:what its value is:possible values."""
    about = setting.comment.replace("\\", "\\\\")
    for special in "[]:":
        about = about.replace(special, f"\\{special}")
    if bool in setting.kinds:
        return f"{flag}=-[{about}]::value:(true false)"
    values = f"({' '.join(setting.choices)})" if setting.choices else "_files"
    return f"{flag}=[{about}]:value:{' ' if _is_number(setting) else values}"


def _flags(job: str) -> dict[str, Setting]:
    """The settings of a job by their flags: the full and the short names."""
    return {f"--{name}": setting for name, setting in _JOBS[job].SETTINGS.flags().items()}


def _is_number(setting: Setting) -> bool:
    return not setting.choices and not {int, float}.isdisjoint(setting.kinds)

# shellcheck shell=bash
# Sourced by the launch scripts: finds a Python, makes .venv in the project folder, installs the
# package into it once.
# Sets: root (the project folder) and python (the environment's interpreter).

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"

# Test whether "$1" is a Python 3.11 to 3.13 that can make virtual environments.
usable() {
    "$1" -c 'import ensurepip, venv, sys
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

find_python() {
    local candidate names=(python3 python3.12 python3.13 python3.11 python)
    for candidate in ${PYTHON:+"$PYTHON"} "${names[@]}"; do
        if usable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    cat >&2 <<END
No Python 3.11, 3.12 or 3.13 with venv was found (tried \$PYTHON, ${names[*]}).
Install one (Debian and Ubuntu: apt install python3 python3-venv), or name it:
    PYTHON=/path/to/python3.12 bash $0
END
    return 1
}

# ignoring_errors COMMAND...: run it whatever its status; Ctrl-C still ends the script.
ignoring_errors() {
    (
        trap 'exit 130' INT
        "$@" >/dev/null 2>&1 || true
    )
}

# install NAME PIP_ARGUMENTS...: make .venv if it is absent or unusable, then run `pip install
# PIP_ARGUMENTS`, unless this NAME has installed them for the same pyproject.toml in the same folder.
install() {
    local base cores packages stamp="$root/.venv/.installed-$1"
    shift
    if ! usable "$python"; then
        base="$(find_python)" || return 1
        "$base" -m venv --clear "$root/.venv"
        # The pip that comes with an older Python takes twice as long.
        ignoring_errors "$python" -m pip install --retries 0 --timeout 10 --upgrade pip || return 1
    fi
    local state
    state="$root $(cksum <"$root/pyproject.toml") $*"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$state" ]; then
        "$python" -m pip install -qq --disable-pip-version-check --no-compile "$@" || return 1
        # On all cores, as pip compiles on one. Packages may hold files that are not Python.
        packages="$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
        cores="$(env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 0)"
        ignoring_errors "$python" -m compileall -qq -j "$cores" "$packages" || return 1
        echo "$state" >"$stamp"
    fi
}

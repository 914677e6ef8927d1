#!/usr/bin/env bash
# The one command of this project: makes the Python environment on first use, then does what it is asked to.
#
#   ./run.sh                     the whole recipe on the embedded competition
#   ./run.sh key=value …         a stage, such as stage=train fold=0
#   ./run.sh test [arguments]    pytest
#   ./run.sh lint                ruff and mypy
#   ./run.sh help                what there is
#
# The environment is .venv if there is one. Else an active environment (VIRTUAL_ENV, or a Kaggle notebook) that already
# has all that the project needs. Else .venv is made. Written for bash 3.2, which macOS still ships.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

say() { printf 'run.sh: %s\n' "$*" >&2; }
stop() { say "$*" && exit 2; }

# A stamp is a copy of the two files that say what to install: it compares contents, and starts no Python.
wanted() { cat pyproject.toml constraints.txt; }
current() { [[ -x $1/bin/python3 && -f $2 ]] && wanted | cmp -s - "$2"; }

# --- an active environment ------------------------------------------------------------------------------------------

active_environment() {
    local python
    if [[ -n ${VIRTUAL_ENV:-} ]]; then
        echo "$VIRTUAL_ENV"
    elif [[ -n ${KAGGLE_KERNEL_RUN_TYPE:-} || -d /kaggle ]] && python=$(command -v python3); then
        echo "${python%/bin/python3}"
    fi
}

use_active() { # folder, groups: true if it has all that the groups list
    local stamp=$1/.pipeline-${2// /-} lacks
    if current "$1" "$stamp"; then return 0; fi
    if lacks=$("$1/bin/python3" -m pipeline.environment lacks $2 2>&1); then
        wanted 2>/dev/null >"$stamp" || true # not ours to write: it is checked at every start
        say "using the active environment $1"
    else
        say "the active environment $1 does not fit (${lacks##*$'\n'})"
        return 1
    fi
}

# --- .venv ----------------------------------------------------------------------------------------------------------

find_python() {
    local name
    for name in python3 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    stop "Python 3.11 or newer is needed, but there is ${1:-none}; install it, then run ./run.sh again"
}

make_venv() {
    local python
    if [[ -L .venv ]]; then
        stop ".venv is a link to $(readlink .venv), where is no writable environment with Python ≥ 3.11 and pip;" \
            "remove the link with rm .venv, then run ./run.sh again"
    fi
    [[ ! -e .venv ]] || say ".venv is incomplete; making it anew"
    python=$(find_python "$(python3 --version 2>/dev/null)")
    say "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv >&2 ||
        stop "$python could not make .venv; on Debian and Ubuntu install python3-venv, then run ./run.sh again"
}

show_progress() { # keeps pip's lines in the log; a terminal shows the newest
    local line
    while IFS= read -r line; do
        printf '%s\n' "$line" >>.venv/install.log
        [[ ! -t 2 ]] || printf '\r\033[K  %.100s' "$line" >&2
    done
    [[ ! -t 2 ]] || printf '\r\033[K' >&2
}

pip_install() {
    PYTHONUNBUFFERED=1 .venv/bin/python3 -m pip install --no-input --disable-pip-version-check \
        --constraint constraints.txt "$@" 2>&1 | show_progress ||
        stop "pip failed: $(grep -m 1 '^ERROR' .venv/install.log) (the whole output is in .venv/install.log);" \
            "see to the network or the free disk space, then run ./run.sh again"
}

lock() { # macOS has no flock: there, do not start twice at once before the first has installed
    command -v flock >/dev/null || return 0
    flock --nonblock 9 || {
        say "another run.sh is installing; waiting for it"
        flock 9
    }
}

install() {
    lock
    if current .venv .venv/.installed; then return; fi # the one waited for has done it
    local begun=$SECONDS
    .venv/bin/python3 -m pipeline.environment mend >/dev/null 2>&1 || make_venv
    [[ ! -e .venv/.installed ]] || say "pyproject.toml or constraints.txt changed: bringing .venv up to date"
    rm -f .venv/install.log
    wanted >.venv/.wanted
    .venv/bin/python3 -m pipeline.environment requirements core test >.venv/requirements.txt
    # Alone and first: beside no torch, torchvision's request would let pip fetch another build of it, with all of CUDA.
    say "installing 1/2: torch (the largest; a slow line needs minutes)"
    pip_install torch
    say "installing 2/2: torchvision, timm and $(($(wc -l <.venv/requirements.txt) - 3)) more"
    pip_install --requirement .venv/requirements.txt
    mv .venv/.wanted .venv/.installed # last, so that an interrupted installation is taken up again
    say "the environment .venv is ready after $((SECONDS - begun)) s"
}

cores() { # at most four: each process holds torch
    local there
    there=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
    echo "$((there < 4 ? there : 4))"
}

# --- the command ----------------------------------------------------------------------------------------------------

case ${1:-} in
    test | lint) groups="core test" ;;
    *) groups="core" ;;
esac

environment=.venv
if [[ ! -e .venv && ! -L .venv ]]; then
    active=$(active_environment)
    if [[ -n $active ]] && use_active "$active" "$groups"; then environment=$active; fi
fi
if [[ $environment == .venv ]] && ! current .venv .venv/.installed; then
    # The lock is on a file that is there anyway (not run.sh: Linux runs no script that is open for writing).
    (install) 9>>constraints.txt
fi

python=$environment/bin/python3
case ${1:-} in
    test)
        shift
        # All tests: a process a core, each computing with one thread; files stay whole, since tests of one share trainings.
        [[ $# -gt 0 ]] || export OMP_NUM_THREADS=1
        [[ $# -gt 0 ]] || set -- --numprocesses="$(cores)" --dist=loadfile
        exec "$python" -m pytest "$@"
        ;;
    lint)
        "$python" -m ruff check .
        "$python" -m ruff format --check .
        exec "$python" -m mypy
        ;;
    *) exec "$python" -m pipeline "$@" ;;
esac

# Shared by scripts/demo and scripts/test: makes .venv and installs the project into it, quickly when nothing changed.
# Sourced, not run. $PYTHON names another interpreter than the first suitable one on PATH.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
VENV="$ROOT/.venv"

say() {
    if [ -t 1 ]; then printf '\033[1m==> %s\033[0m\n' "$*"; else printf '==> %s\n' "$*"; fi
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3.14 python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11 or newer on PATH; install one, or name it: PYTHON=/path/to/python $0" >&2
    return 2
}

# install EXTRAS: installs this checkout, editable, with the extras, unless that was done for the same project files
install() {
    local extras="$1" python stamp wanted
    if ! "$VENV/bin/python" -c '' >/dev/null 2>&1; then
        python="$(find_python)" || return
        say "making .venv with $("$python" --version)"
        "$python" -m venv --clear "$VENV" || return
    fi
    stamp="$VENV/.installed-$extras"
    wanted="$ROOT $("$VENV/bin/python" -c 'import hashlib, sys
print(*(hashlib.sha256(open(path, "rb").read()).hexdigest() for path in sys.argv[1:]))' \
        "$ROOT/pyproject.toml" "$ROOT/constraints.txt")"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    say "installing graphopt-gym[$extras] into .venv (PyTorch among it: the first time takes a few minutes)"
    "$VENV/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
        --constraint "$ROOT/constraints.txt" --editable "$ROOT[$extras]" 2>&1 |
        tee "$VENV/install.log" |
        grep --line-buffered -E '^ *(Collecting|Downloading|Building|Installing|Successfully)' | cut -c 1-120
    if [ "${PIPESTATUS[0]}" -ne 0 ]; then
        tail -n 30 "$VENV/install.log" >&2
        echo "error: pip could not install the project; its last words are above, all of them in $VENV/install.log" >&2
        return 1
    fi
    echo "$wanted" >"$stamp"
}

#!/usr/bin/env bash
# Runs pytest with the given arguments on every Python from 3.11 on that this machine has, each in an environment of its
# own beside .venv, and prints a line for each at the end. Exit code 1 if one failed, or if there is none.
set -uo pipefail
cd "$(dirname "$0")/.."

version_of() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null; }

# A pyenv shim exists for versions that are not switched on; only what runs and is of its name counts.
find_python() {
    local candidate
    while IFS= read -r candidate; do
        case "$(version_of "$candidate")" in "$1".*) echo "$candidate"; return 0 ;; esac
    done < <(type -ap "python$1"; ls -d "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/python"$1" 2>/dev/null)
    return 1
}

results=()
code=0
for version in 3.11 3.12 3.13 3.14; do
    python="$(find_python "$version")" || continue
    environment=".venv-$version"
    echo "== $python"
    if ! "${MAKE:-make}" --no-print-directory PYTHON="$python" VENV="$environment" install; then
        result="not installed"
    elif "$environment/bin/python" -m pytest "$@"; then
        result="passed"
    else
        result="failed"
    fi
    [ "$result" = passed ] || code=1
    results+=("Python $(version_of "$python"): $result")
done
if [ ${#results[@]} -eq 0 ]; then
    echo "no python3.11, 3.12, 3.13 or 3.14 on the PATH or below ${PYENV_ROOT:-$HOME/.pyenv}" >&2
    exit 1
fi
echo
printf '%s\n' "${results[@]}"
exit $code

#!/bin/sh
# h2spec, the conformance suite of HTTP/2: built once, beside the virtual environment's programs. Where there is no Go, or its modules
# cannot be had, its test is skipped.
set -eu
cd "$(dirname "$0")/.."
target=$(pwd)/${VENV:-.venv}/h2spec
version=v2.2.1+incompatible
[ -z "${FLAGCAST_NO_GO:-}" ] || exit 0
[ ! -x "$target/h2spec" ] || exit 0
command -v go >/dev/null 2>&1 || exit 0
echo "building h2spec"
GOPROXY=$(go env GOPROXY | sed 's/,direct$//')
export GOPROXY
GOBIN=$target go install "github.com/summerwind/h2spec/cmd/h2spec@$version" ||
    echo "it cannot be built; the test with h2spec is skipped" >&2

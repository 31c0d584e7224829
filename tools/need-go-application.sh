#!/bin/sh
# The application in Go that tests/providers asks the agent with, built once beside the virtual environment's programs. A first
# build takes a minute or two, so `make test` does without; `make test-providers` builds it.
set -eu
cd "$(dirname "$0")/.."
target=$(pwd)/${VENV:-.venv}/go
if ! command -v go >/dev/null 2>&1; then
    echo "no Go on the PATH: the tests with Go's clients are skipped"
    exit 0
fi
mkdir -p "$target"
cd tests/providers/go
exec go build -mod=readonly -o "$target/application" .

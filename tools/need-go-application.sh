#!/bin/sh
# The application in Go that the tests ask the agent with: flagd's provider, and Flipt's service through grpc-go. Built once,
# beside the virtual environment's programs; the first build takes a minute or so, most of it gRPC. Where there is no Go its
# tests are skipped, and so they are where the modules cannot be had: a proxy for Go may refuse some.
set -eu
cd "$(dirname "$0")/.."
source=tests/providers/go
target=$(pwd)/${VENV:-.venv}/go
[ -z "${FLAGCAST_NO_GO:-}" ] || exit 0
if ! command -v go >/dev/null 2>&1; then
    echo "no Go on the PATH: the tests with flagd's provider for Go and with grpc-go are skipped"
    exit 0
fi
cat "$source/go.mod" "$source/go.sum" "$source/main.go" | cmp -s - "$target/built-from" && exit 0
echo "building the application with flagd's provider for Go"
rm -rf "$target"
mkdir -p "$target"
# From the proxy alone: what it refuses is not looked for at its origin, which may never answer.
GOPROXY=$(go env GOPROXY | sed 's/,direct$//')
export GOPROXY
if ! (cd "$source" && go build -mod=readonly -o "$target/application" .); then
    echo "it cannot be built; the tests with flagd's provider for Go and with grpc-go are skipped" >&2
    [ "${1:-}" != --required ] || exit 1
    exit 0
fi
cat "$source/go.mod" "$source/go.sum" "$source/main.go" >"$target/built-from"

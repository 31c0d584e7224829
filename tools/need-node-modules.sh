#!/bin/sh
# flagd's provider for Node, as tests/providers/node/package-lock.json has it, for the tests that run it. Where there is no
# Node those tests are skipped. Installed once, beside the virtual environment's packages.
set -eu
cd "$(dirname "$0")/.."
wanted=tests/providers/node
target=${VENV:-.venv}/node
[ -z "${FLAGCAST_NO_NODE:-}" ] || exit 0
if ! command -v npm >/dev/null 2>&1 || ! node -e 'process.exit(Number(process.versions.node.split(".")[0]) < 20 ? 1 : 0)' 2>/dev/null; then
    echo "no Node 20 or newer with npm on the PATH: the tests with flagd's provider for Node are skipped"
    exit 0
fi
cmp -s "$wanted/package-lock.json" "$target/installed.json" && exit 0
echo "installing flagd's provider for Node into $target"
rm -rf "$target"
mkdir -p "$target"
cp "$wanted/package.json" "$wanted/package-lock.json" "$target"
if ! npm ci --prefix "$target" --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null; then
    echo "npm could not install it; FLAGCAST_NO_NODE=1 runs the tests without" >&2
    exit 1
fi
cp "$wanted/package-lock.json" "$target/installed.json"

#!/bin/sh
# The application in Rust that the tests ask the agent with, through flagd's provider. Built once, beside the virtual
# environment's programs; that takes some minutes, so only `make test-providers` builds it. Where there is no Rust its tests
# are skipped, and so they are where it cannot be built.
set -eu
cd "$(dirname "$0")/.."
source=tests/providers/rust
target=$(pwd)/${VENV:-.venv}/rust
seconds=1800 # Twelve minutes on two cores that do other work; one that waits for a registry ends too.
[ -z "${FLAGCAST_NO_RUST:-}" ] || exit 0
if ! command -v cargo >/dev/null 2>&1; then
    echo "no Rust on the PATH: the tests with flagd's provider for Rust are skipped"
    exit 0
fi
sources() { cat "$source/Cargo.toml" "$source/Cargo.lock" "$source/src/main.rs"; }
[ -x "$target/application" ] && sources | cmp -s - "$target/built-from" && exit 0
echo "building the application with flagd's provider for Rust"
rm -rf "$target"
mkdir -p "$target"
# The provider's build calls protoc; the one of grpcio-tools is here anyway.
printf '#!/bin/sh\nexec "%s" -m grpc_tools.protoc "$@"\n' "$(pwd)/${VENV:-.venv}/bin/python" >"$target/protoc"
chmod +x "$target/protoc"
if ! (cd "$source" && PROTOC="$target/protoc" CARGO_TARGET_DIR="$target/build" timeout "$seconds" cargo build --quiet --locked); then
    rm -rf "$target/build"
    echo "it cannot be built; the tests with flagd's provider for Rust are skipped" >&2
    [ "${1:-}" != --required ] || exit 1
    exit 0
fi
mv "$target/build/debug/application" "$target/application"
rm -rf "$target/build"
sources >"$target/built-from"

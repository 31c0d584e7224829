#!/bin/sh
# The application in Java that the tests ask the agent with, through flagd's provider. Built once, beside the virtual
# environment's programs; the first build takes a minute or so, most of it downloads. Where there is no Java 17 with Maven
# its tests are skipped, and so they are where it cannot be built. The packages are those of jars.sha256, and no others.
set -eu
cd "$(dirname "$0")/.."
source=tests/providers/java
target=$(pwd)/${VENV:-.venv}/java
seconds=600 # A build that waits for a registry ends.
[ -z "${FLAGCAST_NO_JAVA:-}" ] || exit 0
if ! command -v javac >/dev/null 2>&1 || ! command -v mvn >/dev/null 2>&1; then
    echo "no Java with Maven on the PATH: the tests with flagd's provider for Java are skipped"
    exit 0
fi
if [ "$(javac -version 2>&1 | sed 's/[^0-9]*\([0-9]*\).*/\1/')" -lt 17 ]; then
    echo "Java is older than 17: the tests with flagd's provider for Java are skipped"
    exit 0
fi
sources() { cat "$source/pom.xml" "$source/jars.sha256" "$source/src/main/java/Application.java"; }
sources | cmp -s - "$target/built-from" && exit 0
echo "building the application with flagd's provider for Java"
rm -rf "$target"
mkdir -p "$target"
cp -R "$source/pom.xml" "$source/jars.sha256" "$source/src" "$target"
if ! (cd "$target" && timeout "$seconds" mvn -B -q -C compile dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory=lib &&
    cd lib && sha256sum --quiet -c ../jars.sha256 && [ "$(ls | wc -l)" -eq "$(wc -l <../jars.sha256)" ]); then
    echo "it cannot be built; the tests with flagd's provider for Java are skipped" >&2
    [ "${1:-}" != --required ] || exit 1
    exit 0
fi
sources >"$target/built-from"

#!/bin/sh
# The tests of a ledger that several hosts share run against a real PostgreSQL. Install it where this user may; otherwise say
# how, and fail. The tests start servers of their own; none is left running by the installation.
set -eu
for folder in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /opt/homebrew/opt/postgresql*/bin /usr/local/opt/postgresql*/bin; do
    PATH="$PATH:$folder"
done
command -v initdb >/dev/null 2>&1 && command -v postgres >/dev/null 2>&1 && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing PostgreSQL with apt-get"
    apt-get update -qq
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -qq -y --no-install-recommends postgresql-common >/dev/null
    # Debian's package would make a cluster and start it.
    sed -i -E 's/^#?create_main_cluster *=.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
    apt-get install -qq -y --no-install-recommends postgresql >/dev/null
    for folder in /usr/lib/postgresql/*/bin; do
        [ -x "$folder/initdb" ] && exit 0
    done
fi
cat >&2 <<'T'
The tests need the programs of a PostgreSQL server, and they are not installed.
Install them, then run this again:
    Debian, Ubuntu:  sudo apt-get install postgresql
    Fedora:          sudo dnf install postgresql-server
    macOS:           brew install postgresql
T
exit 1

#!/bin/sh
# The broker tests run against a real mosquitto. Install it where this user may; otherwise say how, and fail.
set -eu
PATH="$PATH:/usr/sbin:/usr/local/sbin"
command -v mosquitto >/dev/null 2>&1 && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing mosquitto with apt-get"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends mosquitto >/dev/null
    command -v mosquitto >/dev/null 2>&1 && exit 0
fi
cat >&2 <<'T'
The tests need the mosquitto broker, and it is not installed.
Install it, then run this again:
    Debian, Ubuntu:  sudo apt-get install mosquitto
    Fedora:          sudo dnf install mosquitto
    macOS:           brew install mosquitto
T
exit 1

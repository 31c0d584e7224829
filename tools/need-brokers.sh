#!/bin/sh
# The brokers that `make test-brokers` runs beside mosquitto and the embedded one: RabbitMQ and ejabberd from the system's
# packages, aedes from npm as tests/matrix/aedes/package-lock.json has it. Install them where this user may; otherwise say how,
# and fail. The tests start brokers of their own; none is left running by the installation.
set -eu
cd "$(dirname "$0")/.."
policy=/usr/sbin/policy-rc.d

is_there() {
    [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] && command -v erl >/dev/null 2>&1 &&
        ls -d /usr/lib/*/ejabberd-* >/dev/null 2>&1
}

if ! is_there && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing RabbitMQ and ejabberd with apt-get"
    apt-get update -qq
    # Debian's packages would start what they install, on the ports that a broker of this machine may need.
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        trap 'exit 1' INT TERM HUP
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    # One that was there before, and may be at work, stays as it is.
    new=
    for name in rabbitmq-server ejabberd; do
        dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || new="$new $name"
    done
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends rabbitmq-server ejabberd >/dev/null
    if [ -d /run/systemd/system ] && [ -n "$new" ]; then
        # shellcheck disable=SC2086  # one word for each name
        systemctl disable --quiet --now $new || true
    fi
fi
if ! is_there; then
    cat >&2 <<'TEXT'
The broker tests need RabbitMQ and ejabberd, and they are not installed.
Install them, then run this again:
    Debian, Ubuntu:  sudo apt-get install rabbitmq-server ejabberd
TEXT
    exit 1
fi

wanted=tests/matrix/aedes
target=${VENV:-.venv}/aedes
if ! command -v npm >/dev/null 2>&1 || ! node -e 'process.exit(Number(process.versions.node.split(".")[0]) < 20 ? 1 : 0)' 2>/dev/null; then
    echo "The broker tests need Node 20 or newer with npm on the PATH, for aedes." >&2
    exit 1
fi
cmp -s "$wanted/package-lock.json" "$target/installed.json" && exit 0
echo "installing aedes into $target"
rm -rf "$target"
mkdir -p "$target"
cp "$wanted/package.json" "$wanted/package-lock.json" "$target"
npm ci --prefix "$target" --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null
cp "$wanted/package-lock.json" "$target/installed.json"

#!/bin/bash
# Installs what make test and make demo need: Kamailio from Debian's packages, and a virtual
# environment of Debian's python3 in .venv.  With --containers, and where a Docker Engine runs, also
# what builds and starts containers.  With --brokers also what make bench compares with.  Quick when
# all is there.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
    kamailio kamailio-python3-modules kamailio-extra-modules kamailio-json-modules
    kamailio-utils-modules kamailio-tls-modules kamailio-presence-modules sip-tester python3-venv
    python3-cffi iproute2 openssl
)

die() {
    echo "setup: $*" >&2
    exit 1
}

installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

install_packages() {
    local as_root=() missing=("$@") policy=/usr/sbin/policy-rc.d status=0
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || die "need root to install: ${missing[*]}"
        as_root=(sudo)
    fi
    echo "setup: installing ${missing[*]}"
    # Packages start their services when they are installed.  Neither is wanted here, nor may a
    # service that cannot start fail the installation.
    if [ ! -e $policy ]; then
        trap '"${as_root[@]}" rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee $policy >/dev/null
        "${as_root[@]}" chmod 755 $policy
    fi
    "${as_root[@]}" apt-get -q update
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends \
        install "${missing[@]}" || status=$?
    if [ -n "$(trap -p EXIT)" ]; then
        "${as_root[@]}" rm -f $policy
        trap - EXIT
    fi
    [ "$status" = 0 ] || die "apt-get could not install ${missing[*]}"
}

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    die "this is no Debian; install Kamailio with app_python3, sipp and python3's venv by hand"
fi
if [ "${1:-}" = --containers ] && docker info >/dev/null 2>&1; then
    packages+=(debootstrap iptables) # for docker/make-base.sh, and for tests that cut networks
    # The plugin, or the program of its own that was before it.
    docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null ||
        packages+=(docker-compose)
fi
[ "${1:-}" != --brokers ] || packages+=(redis-server nats-server)
missing=()
for package in "${packages[@]}"; do
    installed "$package" || missing+=("$package")
done
[ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"

# Kamailio runs Debian's python3, so the tests do as well.
wanted="$(/usr/bin/python3 -V) $(sha256sum requirements-dev.txt)"
stamp=.venv/kemi_dmq-setup
if [ "$(cat $stamp 2>/dev/null)" != "$wanted" ]; then
    echo "setup: .venv"
    if ! .venv/bin/python -c 'import pip, sys; sys.exit(sys.argv[1] != sys.version.split()[0])' \
        "$(/usr/bin/python3 -c 'import sys; print(sys.version.split()[0])')" 2>/dev/null; then
        /usr/bin/python3 -m venv --clear .venv
    fi
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
    echo "$wanted" >$stamp
fi

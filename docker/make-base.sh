#!/usr/bin/env bash
# Make a Debian base image from Debian's packages, where no image can be pulled:
#   docker/make-base.sh bookworm|trixie|forky
# It makes the image kemi-dmq-base:SUITE with debootstrap and docker import (some 30 s) and leaves
# it alone when it is there.  Needs root (or sudo), debootstrap and a Docker Engine.
# DEBIAN_MIRROR: where to get the packages; by default where this machine's apt gets its own.
set -euo pipefail

suite=${1:?usage: make-base.sh SUITE}
image=kemi-dmq-base:$suite
if docker image inspect "$image" >/dev/null 2>&1; then
    exit 0
fi
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)

mirror=${DEBIAN_MIRROR:-}
if [ -z "$mirror" ]; then
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' |
        grep -v security | grep '/debian/\?$' | head -n 1 || true)
fi
if [ -z "$mirror" ]; then
    echo "make-base.sh: this machine's apt names no mirror of Debian; set DEBIAN_MIRROR=http://…/debian" >&2
    exit 1
fi

scripts=/usr/share/debootstrap/scripts
if [ ! -e "$scripts/$suite" ]; then
    # An older debootstrap does not know a newer suite; all are made as sid is.
    "${as_root[@]}" ln -s sid "$scripts/$suite"
fi

work=$(mktemp -d)
trap '"${as_root[@]}" rm -rf "$work"' EXIT
"${as_root[@]}" debootstrap --variant=minbase --include=ca-certificates "$suite" \
    "$work/root" "$mirror" >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; exit 1; }
# A testing suite's Release file may have expired on a mirror that lags behind.
echo 'Acquire::Check-Valid-Until "false";' |
    "${as_root[@]}" tee "$work/root/etc/apt/apt.conf.d/90valid" >/dev/null
"${as_root[@]}" rm -rf "$work"/root/var/cache/apt/archives/*.deb \
    "$work"/root/var/lib/apt/lists/* "$work"/root/usr/share/doc/* "$work"/root/usr/share/man/*
"${as_root[@]}" tar -C "$work/root" -c . | docker import - "$image" >/dev/null
echo "made $image"

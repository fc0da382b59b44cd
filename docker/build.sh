#!/usr/bin/env bash
# Build the node image: docker/build.sh [bookworm|trixie|forky] -> kemi-dmq:SUITE
# The base is debian:SUITE-slim where it can be pulled, else one made by make-base.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
suite=${1:-bookworm}
base=debian:$suite-slim
if docker image inspect "kemi-dmq-base:$suite" >/dev/null 2>&1; then
    base=kemi-dmq-base:$suite # made before, where no image could be pulled
elif ! docker image inspect "$base" >/dev/null 2>&1 &&
    ! timeout 20 docker pull -q "$base" >/dev/null 2>&1; then
    docker/make-base.sh "$suite"
    base=kemi-dmq-base:$suite
fi

build() { # image, more arguments
    local old image=$1
    shift
    old=$(docker image inspect -f '{{.Id}}' "$image" 2>/dev/null || true)
    docker build -q --network host -f docker/Dockerfile --build-arg "BASE=$base" \
        -t "$image" "$@" . >/dev/null
    if [ -n "$old" ] && [ "$old" != "$(docker image inspect -f '{{.Id}}' "$image")" ]; then
        docker rmi "$old" >/dev/null 2>&1 || true # a container may still use it
    fi
}

# Named, so that the next build finds it, and none without a name is left.
build "kemi-dmq-package:$suite" --target package
build "kemi-dmq:$suite"
echo "built kemi-dmq:$suite"

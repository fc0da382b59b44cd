#!/usr/bin/env bash
# Wait until each container of a compose project lists all of them as active: docker/wait.sh PROJECT
set -euo pipefail
label=com.docker.compose
mapfile -t nodes < <(docker ps -q --filter "label=$label.project=$1" --filter "label=$label.service=node")
mapfile -t cs < <(docker ps -q --filter "label=$label.project=$1" --filter "label=$label.service=c")
all=$((${#nodes[@]} + ${#cs[@]}))

whole() {
    local id
    for id in "${nodes[@]}"; do
        [ "$(docker exec "$id" python3 /opt/node/health.py --show 2>/dev/null | grep -c '"active"')" = $all ] ||
            return 1
    done
    for id in "${cs[@]}"; do
        [ "$(docker exec "$id" kamcmd dmq.list_nodes 2>/dev/null |
            grep -c 'status: active')" = $all ] || return 1
    done
}

echo "waiting until all $all nodes list each other"
end=$((SECONDS + 60))
until whole; do
    if [ $SECONDS -ge $end ]; then
        echo "not within a minute; docker logs says why" >&2
        exit 1
    fi
    sleep 0.2
done

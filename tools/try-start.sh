#!/bin/sh
# Whether Kamailio starts with a file, before you put it in place:
#
#   tools/try-start.sh /etc/kamailio/kamailio.new.cfg
#
# Starts it for some seconds as Debian's service would, in a network of its own that has this
# machine's addresses and no way out: nobody notices, the Kamailio that runs here neither.  What it
# needs of another machine (a database) it does not reach there.  Needs root.  The status is 0 if
# it runs; else the end of its log says why not.
#
# SECONDS_TO_RUN (5) and RUN_AS (the user, kamailio) are from the environment.
set -eu
cfg=${1:?usage: tools/try-start.sh CFG-FILE}
if [ "${TRY_START_INSIDE:-}" != 1 ]; then
    [ "$(id -u)" = 0 ] || { echo "try-start: needs root" >&2; exit 2; }
    [ -r "$cfg" ] || { echo "try-start: cannot read $cfg" >&2; exit 2; }
    ADDRESSES=$(ip -o addr show scope global | awk '{ print $4 }')
    export ADDRESSES TRY_START_INSIDE=1
    exec unshare --net --mount sh "$0" "$cfg"
fi

ip link set lo up
for address in $ADDRESSES; do
    ip addr add "${address%/*}" dev lo nodad 2>/dev/null || ip addr add "${address%/*}" dev lo
done
mkdir -p /run/kamailio
mount -t tmpfs -o mode=1777 none /run/kamailio # the running one keeps its sockets
set -a
[ ! -r /etc/default/kamailio ] || . /etc/default/kamailio
set +a
log=/run/kamailio/try-start.log
status=0
runuser -u "${RUN_AS:-kamailio}" -- timeout -k 5 "${SECONDS_TO_RUN:-5}" kamailio -DD -E -f "$cfg" \
    -P /run/kamailio/try-start.pid -m "${SHM_MEMORY:-64}" -M "${PKG_MEMORY:-8}" >$log 2>&1 ||
    status=$?
if [ $status != 124 ] && [ $status != 137 ]; then # timeout's, which has stopped it
    tail -n 15 $log >&2
    echo "try-start: Kamailio does not start with $cfg (status $status)" >&2
    exit 1
fi
grep -E '(ERROR|CRITICAL|ALERT): ' $log | grep -v 'exited normally' | head -n 15 >&2 || true
if grep -q 'Unhandled exception in the Python code' $log; then
    echo "try-start: Kamailio starts with $cfg, but Python fails" >&2
    exit 1
fi
echo "try-start: Kamailio runs with $cfg"

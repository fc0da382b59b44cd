#!/bin/sh
# Write kamailio.cfg's settings from the environment, and become Kamailio (PID 1).
#
#   DMQ_SERVER_ADDRESS        by default sip:<this container's address>:5060; Kamailio listens there
#                             (with a name: on this container's address, at the name's port)
#   DMQ_NOTIFICATION_ADDRESS, DMQ_PING_INTERVAL, …: every setting of kemi_dmq by its name; any other
#                             name that begins with DMQ_ ends the container with a sentence
#   DMQ_TRANSPORT             udp (default), tcp or tls: what DMQ_SERVER_ADDRESS is by default
#   DMQ_FAMILY                ipv4 (default) or ipv6: which of the container's addresses that is
#   TLS_CERTIFICATE, TLS_KEY, TLS_CA: PEM files, for the transport tls
#   KAMAILIO_LISTEN           more to listen on, separated by blanks (udp:eth0:5080 tcp:eth0:5060)
#   KAMAILIO_CHILDREN (4), KAMAILIO_SHM_MB (64), KAMAILIO_PKG_MB (8)
#   KAMAILIO_CFG, NODE_SCRIPT other files than the image's own.  The health check sends INFO to the
#                             bus's own socket: answer it, with whatever.  Where the answer is JSON
#                             with "health": dmq.health(), it looks at the engine as well.
set -eu
exec 2>&1
export RUN_DIR=/run/node
# Until Kamailio is there this shell is PID 1, which no signal ends by itself.  Only a wait is
# interrupted at once.
trap 'exit 0' TERM INT
rm -f "$RUN_DIR/pid" # what a container that was killed has left; ctl removes its socket itself
python3 /opt/node/configure.py >"$RUN_DIR/settings.cfg" &
wait $!
exec kamailio -DD -E -f "${KAMAILIO_CFG:-/opt/node/kamailio.cfg}" \
    -m "${KAMAILIO_SHM_MB:-64}" -M "${KAMAILIO_PKG_MB:-8}" \
    -P "$RUN_DIR/pid" -w "$RUN_DIR"

"""kamailio.cfg lines from the environment, on stdout; see entrypoint.sh for the variables."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping

#: Where health.py asks.  Not on the network: only from inside of the container.
HEALTH = ("127.0.0.1", 5070)
#: Variables of the image that are not settings of kemi_dmq.
OURS = ("DMQ_TRANSPORT", "DMQ_FAMILY")


def own_address(version: str) -> str:
    """The container's own address: the one behind its host name."""
    family = socket.AF_INET6 if version == "ipv6" else socket.AF_INET
    found = socket.getaddrinfo(socket.gethostname(), None, family, socket.SOCK_DGRAM)
    address = str(found[0][4][0])
    return f"[{address}]" if ":" in address else address


def is_address(host: str) -> bool:
    try:
        socket.getaddrinfo(host.strip("[]"), None, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return False
    return True


def where(environment: Mapping[str, str], own: str) -> tuple[dict[str, str], str]:
    """The settings that follow from DMQ_SERVER_ADDRESS and DMQ_TRANSPORT, and the transport."""
    given = environment.get("DMQ_SERVER_ADDRESS", "")
    if not given:
        transport = environment.get("DMQ_TRANSPORT") or "udp"
        port = 5061 if transport == "tls" else 5060
        suffix = "" if transport == "udp" else f";transport={transport}"
        return {
            "DMQ_SERVER_ADDRESS": f"sip:{own}:{port}{suffix}",
            "DMQ_SERVER_SOCKET": f"{transport}:{own}:{port}",
        }, transport
    if environment.get("DMQ_SERVER_SOCKET"):
        return {}, environment["DMQ_SERVER_SOCKET"].partition(":")[0]
    # kemi_dmq says what is wrong with an address that is none: here it is only taken apart.
    address, _, parameters = given.partition(":")[2].partition(";")
    transport = "udp"
    for parameter in parameters.split(";"):
        if parameter.startswith("transport="):
            transport = parameter[10:].lower()
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        host, port = address, "5061" if transport == "tls" else "5060"
    # A name is what the others are told; Kamailio listens on this container's own address.
    host = host if is_address(host) else own
    return {"DMQ_SERVER_SOCKET": f"{transport}:{host}:{port}"}, transport


def lines(environment: Mapping[str, str], own: str) -> list[str]:
    settings = {k: v for k, v in environment.items() if k.startswith("DMQ_") and v}
    more, transport = where(settings, own)
    settings.update(more)
    out = []
    for name, value in settings.items():
        if name not in OURS:
            shown = value if value.isdigit() else '"' + value.replace('"', "") + '"'
            out.append(f"#!define {name} {shown}")
    out.append(f"listen={settings['DMQ_SERVER_SOCKET']}")
    listens = environment.get("KAMAILIO_LISTEN", "").split()
    out += [f"listen={listen}" for listen in listens]
    out.append("listen=udp:{}:{}".format(*HEALTH))
    # A child that dies holding the timers' lock would let a stop wait for it (docs/kamailio.md).
    out += ["dns_cache_init=off", "dst_blocklist_init=off"]
    if transport == "udp" and all(listen.startswith("udp:") for listen in listens):
        # A TCP process that never has anything to do makes one stop in some hundred last a minute.
        out.append("disable_tcp=yes")
    if transport == "tls":
        out.append("#!define WITH_TLS")
    out.append(f"children={environment.get('KAMAILIO_CHILDREN') or 4}")
    script = environment.get("NODE_SCRIPT") or "/opt/node/node.py"
    out.append(f'#!substdef "!NODE_SCRIPT!{script}!g"')
    return out


def tls_cfg(environment: Mapping[str, str]) -> str:
    """Both sides show the node's certificate, and ask the other for one of the same CA."""
    text = ""
    for domain in ("server", "client"):
        text += (
            f"[{domain}:default]\nmethod = TLSv1.2+\n"
            "verify_certificate = yes\nrequire_certificate = yes\n"
            f"certificate = {environment['TLS_CERTIFICATE']}\n"
            f"private_key = {environment['TLS_KEY']}\n"
            f"ca_list = {environment['TLS_CA']}\n"
        )
    return text


def main() -> None:
    own = own_address(os.environ.get("DMQ_FAMILY", "ipv4"))
    configured = lines(os.environ, own)
    if "#!define WITH_TLS" in configured:
        missing = [n for n in ("TLS_CERTIFICATE", "TLS_KEY", "TLS_CA") if not os.environ.get(n)]
        if missing:
            sys.exit(f"transport tls needs {', '.join(missing)}: the paths of PEM files")
        with open(os.environ["RUN_DIR"] + "/tls.cfg", "w", encoding="ascii") as file:
            file.write(tls_cfg(os.environ))
    print("\n".join(configured))


if __name__ == "__main__":
    main()

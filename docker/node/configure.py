"""kamailio.cfg lines from the environment, on stdout; see entrypoint.sh for the variables."""

from __future__ import annotations

import difflib
import os
import re
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

#: Variables of the image that are not settings of kemi_dmq, and what they may be.
CHOICES = {"DMQ_TRANSPORT": ("udp", "tcp", "tls"), "DMQ_FAMILY": ("ipv4", "ipv6")}
_SOCKET = re.compile(r"(udp|tcp|tls):(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+):[0-9]{1,5}")


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


def known_variables() -> set[str]:
    """The settings of kemi_dmq, what its cfg files ask for, and our own."""
    from kemi_dmq.settings import NAMES

    known = {*CHOICES, *("DMQ_" + name.upper() for name in NAMES)}
    for file in Path(__file__).parent.glob("kemi_dmq*.cfg"):
        known.update(re.findall(r"\bDMQ_[A-Z_]+", file.read_text()))
    return known


def check(environment: Mapping[str, str]) -> None:
    """End with a sentence for a variable that would do nothing, or one that Kamailio would take
    for a syntax error."""
    known = known_variables()
    for name, value in environment.items():
        if name.startswith("DMQ_") and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            sys.exit(f"{name} is no setting of kemi_dmq{hint}")
        if value and name in CHOICES and value not in CHOICES[name]:
            sys.exit(f"{name} is {value!r}; it must be one of {', '.join(CHOICES[name])}")
    given = environment.get("DMQ_SERVER_SOCKET", "")
    if given and not _SOCKET.fullmatch(given):
        sys.exit(f"DMQ_SERVER_SOCKET is {given!r}; it must be a socket such as udp:10.0.0.20:5060")


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


def lines(settings: Mapping[str, str], environment: Mapping[str, str], transport: str) -> list[str]:
    out = []
    for name, value in settings.items():
        if name not in CHOICES:
            shown = value if value.isdigit() else '"' + value.replace('"', "") + '"'
            out.append(f"#!define {name} {shown}")
    out.append(f"listen={settings['DMQ_SERVER_SOCKET']}")
    listens = environment.get("KAMAILIO_LISTEN", "").split()
    out += [f"listen={listen}" for listen in listens]
    # A child that dies holding the timers' lock would let a stop wait for it (docs/kamailio.md).
    out += ["dns_cache_init=off", "dst_blocklist_init=off", "exit_timeout=5"]
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
    environment = os.environ
    check(environment)
    run_dir = Path(environment["RUN_DIR"])
    more, transport = where(environment, own_address(environment.get("DMQ_FAMILY") or "ipv4"))
    settings = {k: v for k, v in environment.items() if k.startswith("DMQ_") and v} | more
    if transport == "tls":
        missing = [n for n in ("TLS_CERTIFICATE", "TLS_KEY", "TLS_CA") if not environment.get(n)]
        if missing:
            sys.exit(f"transport tls needs {', '.join(missing)}: the paths of PEM files")
        (run_dir / "tls.cfg").write_text(tls_cfg(environment))
    # Where health.py asks.
    (run_dir / "bus").write_text(settings["DMQ_SERVER_SOCKET"])
    print("\n".join(lines(settings, environment, transport)))


if __name__ == "__main__":
    main()

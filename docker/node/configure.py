"""kamailio.cfg lines from the environment, on stdout."""

import os
import socket


def own_address(version: str = "") -> str:
    """The container's own address: the one behind its host name."""
    version = version or os.environ.get("DMQ_FAMILY", "ipv4")
    family = socket.AF_INET6 if version == "ipv6" else socket.AF_INET
    found = socket.getaddrinfo(socket.gethostname(), None, family, socket.SOCK_DGRAM)
    address = str(found[0][4][0])
    return f"[{address}]" if ":" in address else address


def main() -> None:
    address = own_address()
    transport = os.environ.get("DMQ_TRANSPORT", "udp")
    port = 5061 if transport == "tls" else 5060
    suffix = "" if transport == "udp" else f";transport={transport}"
    settings = {"DMQ_SERVER_ADDRESS": f"sip:{address}:{port}{suffix}"}
    settings.update({k: v for k, v in os.environ.items() if k.startswith("DMQ_") and v})
    for name in ("DMQ_TRANSPORT", "DMQ_FAMILY"):
        settings.pop(name, None)
    for name, value in settings.items():
        shown = value if value.isdigit() else '"' + value.replace('"', "") + '"'
        print(f"#!define {name} {shown}")
    print(f"listen=udp:{address}:5060")
    print(f"listen=tcp:{address}:5060")
    if ":" in address:
        print(f"listen=udp:{own_address('ipv4')}:5060")
    if transport == "tls":
        print("#!define WITH_TLS")
        print(f"listen=tls:{address}:5061")
        with open(os.environ["RUN_DIR"] + "/tls.cfg", "w", encoding="ascii") as tls:
            for domain in ("server", "client"):
                tls.write(f"[{domain}:default]\nmethod = TLSv1.2+\nverify_certificate = yes\n")
                tls.write("require_certificate = yes\n")
                for key in ("certificate", "private_key", "ca_list"):
                    variable = {"certificate": "TLS_CERTIFICATE", "private_key": "TLS_KEY"}
                    tls.write(f"{key} = {os.environ[variable.get(key, 'TLS_CA')]}\n")
    print(f"children={os.environ.get('KAMAILIO_CHILDREN', '4')}")
    script = os.environ.get("NODE_SCRIPT", "/opt/node/node.py")
    print(f'#!substdef "!NODE_SCRIPT!{script}!g"')


if __name__ == "__main__":
    main()

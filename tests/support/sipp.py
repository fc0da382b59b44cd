"""Real REGISTER and PUBLISH traffic, by sipp."""

from __future__ import annotations

import subprocess
from pathlib import Path

_HEAD = """
{method} sip:{ruri} SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
Max-Forwards: 70
From: <sip:user[call_number]@bus.test>;tag=[pid]-[call_number]
To: <sip:user[call_number]@bus.test>
Call-ID: [call_id]
CSeq: 1 {method}
Expires: 600
"""
_REGISTER = """Contact: <sip:user[call_number]@[local_ip]:[local_port]>
{more}Content-Length: 0
"""
_PUBLISH = """Event: presence
Content-Type: application/pidf+xml
{more}Content-Length: [len]

<?xml version="1.0"?>
<presence xmlns="urn:ietf:params:xml:ns:pidf" entity="sip:user[call_number]@bus.test">
<tuple id="t[call_number]"><status><basic>open</basic></status></tuple>
</presence>
"""


def scenario(method: str, header: str = "") -> str:
    """A sipp scenario: one REGISTER or PUBLISH of a user of its own, answered with 200."""
    more = f"{header}\n" if header else ""
    if method == "REGISTER":
        text = _HEAD.format(method=method, ruri="bus.test") + _REGISTER.format(more=more)
    else:
        ruri = "user[call_number]@bus.test"
        text = _HEAD.format(method=method, ruri=ruri) + _PUBLISH.format(more=more)
    return f"""<?xml version="1.0" encoding="ISO-8859-1" ?>
<scenario name="{method}">
<send retrans="500"><![CDATA[{text}]]></send>
<recv response="200"></recv>
</scenario>
"""


def run(
    directory: Path, method: str, to: str, source: str, count: int, *, header: str = ""
) -> None:
    """Send count requests from source to a node, and check that each is answered with 200."""
    file = directory / f"{method.lower()}.xml"
    file.write_text(scenario(method, header))
    command = ["sipp", "-sf", str(file), f"{to}:5060", "-i", source, "-p", "5099"]
    command += ["-m", str(count), "-r", "200", "-timeout", "30s", "-timeout_error", "-nostdin"]
    done = subprocess.run(
        command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")[-3000:]

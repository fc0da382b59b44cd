"""The examples of README.md and of kamailio-cfg/ work as they stand."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tests.support.kamailio import ROOT, Bed, CNode, Kamailio, wait_for
from tests.support.sip import SipSocket, request

A, B = "127.0.0.24", "127.0.0.25"


class Example(Kamailio):
    """Started as its text says: without a working directory, with the package beside it."""

    def kamcmd(self, *command: str) -> str:
        self.ctl = f"unix:{self.directory}/kamailio_ctl"
        return super().kamcmd(*command)

    def start(self, wait: bool = True) -> None:
        # A place of its own for what is in /run/kamailio.
        own = ["-P", f"{self.directory}/pid", "-Y", str(self.directory)]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                ["kamailio", "-DD", "-E", "-f", str(self.cfg), *own],
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )


def example(bed: Bed, cfg: str, script: str, address: str) -> Example:
    directory = bed.directory / "etc"
    directory.mkdir()
    shutil.copytree(ROOT / "kemi_dmq", directory / "kemi_dmq")
    for file in (ROOT / "kamailio-cfg").glob("kemi_dmq*"):
        text = file.read_text().replace("/etc/kamailio", str(directory))
        (directory / file.name).write_text(text)
    name = re.findall(r'(?:"load"|DMQ_PEERS_FILE).*?(\w+\.py)"', cfg)[0]
    (directory / name).write_text(script)
    node = Example(address, directory, cfg.replace("/etc/kamailio", str(directory)), {})
    other = CNode(B, bed.directory / "c")
    bed.nodes += [node, other]
    other.start()
    node.start()
    wait_for(lambda: node.uri in other.active(), 5, f"it joins; log:\n{node.log()[-2000:]}")

    def heard() -> bool:
        """It tells the others, once it lists them itself."""
        with SipSocket() as sip:
            data = request(address, method="MESSAGE", body=b"hi", via=sip.name, sender=sip.name)
            assert sip.ask(data, address) is not None
        return "hi" in other.got()

    wait_for(heard)
    assert other.bcast(b"hello from C") == 200
    wait_for(lambda: "hello from C" in node.log())
    assert "dmq_engine" in node.kamcmd("core.psx"), "the example has a control socket"
    return node


def test_the_example_of_the_readme_works(bed: Bed) -> None:
    text = (ROOT / "README.md").read_text()
    cfg = re.findall(r"```cfg\n(.*?)```", text, re.DOTALL)[0]
    script = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    example(bed, cfg, script, A)


def test_the_example_that_routes_in_kamailio_cfg_works(bed: Bed) -> None:
    text = (ROOT / "README.md").read_text()
    cfg = re.findall(r"```cfg\n(.*?)```", text, re.DOTALL)[1]
    script = re.findall(r"```python\n(# dmq_peers.py.*?)```", text, re.DOTALL)[0]
    node = example(bed, cfg, script, A)
    wait_for(lambda: f"sip:{B}:5060 is on the bus" in node.log())


def complete_node(name: str, script: str = "") -> tuple[str, str]:
    folder = Path(ROOT, "kamailio-cfg/examples")
    cfg = (folder / f"{name}.cfg").read_text().replace("127.0.0.3", B)
    return cfg, (folder / f"{script or name}.py").read_text()


def test_no_file_of_ours_overwrites_a_kamailio_cfg() -> None:
    """Whoever copies kamailio-cfg into /etc/kamailio keeps what is there."""
    names = {path.name for path in (ROOT / "kamailio-cfg").rglob("*") if path.is_file()}
    assert names and not [name for name in names if "dmq" not in name]


def test_the_complete_node_works(bed: Bed) -> None:
    cfg, script = complete_node("dmq_node")
    example(bed, cfg, script, "127.0.0.2")


def test_the_complete_node_that_routes_in_kamailio_cfg_works(bed: Bed) -> None:
    cfg, script = complete_node("dmq_native_node", "dmq_peers")
    node = example(bed, cfg, script, "127.0.0.2")
    wait_for(lambda: f"sip:{B}:5060 is on the bus" in node.log())


def test_the_complete_node_works_with_c_modules(bed: Bed) -> None:
    cfg, script = complete_node("dmq_node")
    example(
        bed, cfg.replace("#!KAMAILIO", "#!KAMAILIO\n#!define WITH_C_MODULES"), script, "127.0.0.2"
    )
    with SipSocket() as sip:
        for peer in ("htable", "usrloc", "dialog"):
            reply = sip.ask(request("127.0.0.2", user=peer, body=b"[", via=sip.name), "127.0.0.2")
            assert reply is not None and reply.code == 400, "each peer is there; that is no JSON"

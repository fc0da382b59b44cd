"""kamailio.cfg lines for C modules that replicate over DMQ, on either kind of node, and what
their RPC commands show."""

from __future__ import annotations

import re

from .kamailio import CNode, Kamailio, PythonNode

#: On a Python node these follow kemi_dmq.cfg, on a C node dmq.so.
HTABLE = """
loadmodule "htable.so"
modparam("htable", "enable_dmq", 1)
modparam("htable", "dmq_init_sync", 1)
modparam("htable", "htable", "t=>size=10;autoexpire=0;dmqreplicate=1;")
"""

BIND = {"bind_c_modules": 1}


def value(node: Kamailio, key: str) -> str | None:
    """What a node's table t holds under key."""
    found = re.search(r"value: (.*)", node.kamcmd("htable.get", "t", key))
    return found[1].strip() if found else None


def put(node: Kamailio, key: str, what: str) -> None:
    node.kamcmd("htable.sets", "t", key, what)


def remove(node: Kamailio, key: str) -> None:
    node.kamcmd("htable.delete", "t", key)


def items(node: Kamailio) -> int:
    """How many cells table t has."""
    found = re.search(r"\bname: t\b.*?\ball: (\d+)", node.kamcmd("htable.stats"), re.DOTALL)
    return int(found[1]) if found else -1


AnyNode = PythonNode | CNode

USRLOC = """
#!define WITH_REGISTRAR
loadmodule "usrloc.so"
modparam("usrloc", "preload", "location")
loadmodule "registrar.so"
loadmodule "dmq_usrloc.so"
modparam("dmq_usrloc", "enable", 1)
modparam("dmq_usrloc", "sync", 1)
"""

DIALOG = """
loadmodule "rr.so"
loadmodule "dialog.so"
modparam("dialog", "dlg_match_mode", 2)
modparam("dialog", "enable_dmq", 1)
"""

#: Without a database.
PRESENCE = """
#!define WITH_PRESENCE
loadmodule "presence.so"
loadmodule "presence_xml.so"
modparam("presence", "publ_cache", 2)
modparam("presence", "subs_db_mode", 0)
modparam("presence", "enable_dmq", 1)
modparam("presence_xml", "force_active", 1)
"""

#: Appended to node_script.py.  The caller's INVITE goes on to the address in its R-URI.
ROUTES = """

class WithRoutes(Kamailio):
    def ksr_request_route(self, msg):
        if KSR.is_method("REGISTER"):
            KSR.registrar.save("location", 0)
            return 1
        if KSR.is_method("PUBLISH"):
            KSR.presence.handle_publish()
            return 1
        if KSR.is_method("INVITE") or KSR.is_method("ACK") or KSR.is_method("BYE"):
            KSR.dialog.dlg_manage()
            KSR.tm.t_relay()
            return 1
        return super().ksr_request_route(msg)


def mod_init():
    return dmq.attach(WithRoutes())
"""


def contacts(node: Kamailio, user: str) -> list[str]:
    """Where a user is registered, as a node has it."""
    return re.findall(r"Address: (\S+)", node.kamcmd("ul.lookup", "location", user))


def dialogs(node: Kamailio) -> dict[str, str]:
    """Call-ID -> state of the dialogs that a node knows."""
    text = node.kamcmd("dlg.list")
    return dict(re.findall(r"call-id: (\S+).*?state: (\d)", text, re.DOTALL))

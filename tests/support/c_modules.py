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

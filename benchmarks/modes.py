"""The ways of sending that are compared: to measure one more, add it here.

A Mode becomes a row (or a line of a plot) in each section whose list has it.  ``defines`` are
settings of all nodes of its bus, which speak ``transport``; ``how`` chooses the arguments of the
call in node.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: Which script or module a node runs.
PYTHON, C, REDIS, NATS = "python", "c", "redis", "nats"


@dataclass(frozen=True)
class Mode:
    name: str
    kind: str = PYTHON
    how: str = "plain"
    transport: str = "udp"
    defines: Mapping[str, object] = field(default_factory=dict, hash=False)


#: Arguments of send_message() and bcast_message() in node.py, apart from the response callback
#: that "callback" and all that end in "_told" have.
HOW: dict[str, dict[str, Any]] = {
    "plain": {},
    "callback": {},
    "ordered": {"ordered": True},
    "ordered_told": {"ordered": True},
    "deadline": {"deadline": 60},
}

PLAIN = Mode("kemi_dmq")
CALLBACK = Mode("kemi_dmq, response callback", how="callback")
BY_TM = Mode("kemi_dmq, response callback, use_tm=1", how="callback", defines={"USE_TM": 1})
SL_SEND = Mode("kemi_dmq, sl_send=1", defines={"SL_SEND": 1})
#: Broadcasts that the calling process sends to one node after the other.
DIRECT = Mode("kemi_dmq, outbox=0", defines={"OUTBOX": 0})
UNBATCHED = Mode("kemi_dmq, batch_bytes=0", defines={"BATCH_BYTES": 0})
THE_C_MODULE = Mode("C module", C)
WITH_REDIS = Mode("Redis pub/sub", REDIS)
WITH_NATS = Mode("NATS", NATS)

#: One message to one node.
SEND = (CALLBACK, BY_TM, PLAIN, SL_SEND, THE_C_MODULE)
#: To all nodes.
BROADCAST = (PLAIN, DIRECT, SL_SEND, THE_C_MODULE)
#: Under load: throughput and latency, the registration storm.  (Not sl_send: what goes out without
#: a transaction or the outbox outruns its receivers.)
LOAD = (PLAIN, UNBATCHED, DIRECT, THE_C_MODULE)
#: The same over TCP.
LOAD_TCP = (
    Mode("kemi_dmq, TCP", transport="tcp"),
    Mode("kemi_dmq, TCP, outbox=0", transport="tcp", defines={"OUTBOX": 0}),
    Mode("C module, TCP", C, transport="tcp"),
)
#: What a user might pick instead of a bus of nodes.
BROKERS = (WITH_REDIS, WITH_NATS)

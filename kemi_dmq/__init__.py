"""Kamailio's distributed message queue (DMQ) for KEMI scripts, without dmq.so."""

from .api import DmqApi
from .dmq import DMQ, dmq_load_api
from .message import Message, Outcome, Reply, Response, ResponseCallback
from .node import Node, Status
from .peer import Peer
from .settings import SettingError

__version__ = "0.1.0"

__all__ = [
    "DMQ",
    "DmqApi",
    "Message",
    "Node",
    "Outcome",
    "Peer",
    "Reply",
    "Response",
    "ResponseCallback",
    "SettingError",
    "Status",
    "dmq_load_api",
]

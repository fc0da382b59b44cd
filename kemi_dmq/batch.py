"""Many messages in one KDMQ request, between Python nodes: how they are written, and the answers.

A request to the peer ``kdmq`` with Content-Type ``text/kdmq`` bears one message after the other,
each a line and as many bytes of UTF-8 as it says::

    <peer> <Max-Forwards> <bytes> <Content-Type>LF<body>
    :<bytes>LF<body>                                peer, Max-Forwards and type as the one before

A body that is no text travels as base64, as in a request of its own (wire.ENCODED).  The answer is
200 when each message was answered with 200 OK alone; else 202, whose body has for each other one::

    <number> <code> <bytes>TAB<Content-Type>TAB<reason>LF<body>

Messages count from 0.  Code 421 (Extension Required): this message has not run, send it alone.
Any other final answer is that of all messages.  Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .wire import size_of

#: The user part of the R-URI.  No peer may have this name.
PEER = "kdmq"
CONTENT_TYPE = "text/kdmq"
SEND_ALONE = 421
#: The code of an answer that has a body.  Without it (an answer that was kept may have lost it)
#: nothing is known of the messages.
MIXED = 202
#: So many messages are read from one request.
MAX_MESSAGES = 1000
#: Bytes of all bodies in one answer; what is more is left out.
MAX_ANSWERS = 30_000


class BatchError(Exception):
    pass


class Item(NamedTuple):
    peer_id: str
    max_forwards: int
    content_type: str
    body: str

    @property
    def head(self) -> tuple[str, int, str]:
        return self[:3]


class ItemAnswer(NamedTuple):
    code: int
    reason: str
    body: str
    content_type: str


FINE = ItemAnswer(200, "OK", "", "")


def room(item: Item) -> tuple[int, int]:
    """Bytes that a message takes in a batch: in any place, and behind one of the same head."""
    peer_id, max_forwards, content_type, body = item
    size = size_of(body)
    same = size + len(f":{size}\n")
    return size + len(f"{peer_id} {max_forwards} {size} {content_type}\n"), same


def pack(items: Iterable[Item]) -> str:
    parts = []
    before: tuple[str, int, str] | None = None
    for peer_id, max_forwards, content_type, body in items:
        size = size_of(body)
        head = (peer_id, max_forwards, content_type)
        if head == before:
            parts.append(f":{size}\n{body}")
        else:
            parts.append(f"{peer_id} {max_forwards} {size} {content_type}\n{body}")
            before = head
    return "".join(parts)


def unpack(text: str) -> list[Item]:
    """The messages of a batch; BatchError if it is none.  Nothing of a bad one is taken."""
    # Counted in bytes; where each is a character, no copy is needed.
    is_ascii = text.isascii()
    raw = b"" if is_ascii else text.encode("utf-8", "surrogatepass")
    end = len(text) if is_ascii else len(raw)
    items: list[Item] = []
    at, peer_id, max_forwards, content_type = 0, "", 0, ""
    try:
        while at < end:
            stop = text.index("\n", at) if is_ascii else raw.index(b"\n", at)
            line = text[at:stop] if is_ascii else raw[at:stop].decode()
            if line.startswith(":"):
                if not items:
                    raise BatchError("the first message says that it is as the one before")
                size = _number(line[1:])
            else:
                peer_id, hops, length, content_type = line.split(" ", 3)
                max_forwards, size = _number(hops), _number(length)
                if not peer_id:
                    raise BatchError("a message without a peer")
            at = stop + 1 + size
            if at > end:
                raise BatchError("a message is cut short")
            body = text[stop + 1 : at] if is_ascii else raw[stop + 1 : at].decode()
            items.append(Item(peer_id, max_forwards, content_type, body))
            if len(items) > MAX_MESSAGES:
                raise BatchError("too many messages")
    except ValueError as error:
        raise BatchError(f"not a batch: {error}") from None
    if not items:
        raise BatchError("no messages")
    return items


def pack_answers(answers: Iterable[ItemAnswer]) -> str:
    """ "" when all are fine: then the answer is FINE's code, else MIXED."""
    parts: list[str] = []
    left = MAX_ANSWERS
    for number, answer in enumerate(answers):
        if answer == FINE:
            continue
        code, reason, body, content_type = answer
        size = size_of(body)
        if size > left:
            body, size = "", 0
        left -= size
        content_type = content_type.replace("\t", " ")
        parts.append(f"{number} {code} {size}\t{content_type}\t{reason}\n{body}")
    return "".join(parts)


def unpack_answers(text: str, count: int) -> list[ItemAnswer]:
    """The answers to count messages; BatchError if it is no answer to them."""
    if not text:
        raise BatchError("its body is missing")
    answers = [FINE] * count
    raw = text.encode("utf-8", "surrogatepass")
    at = 0
    try:
        while at < len(raw):
            stop = raw.index(b"\n", at)
            head, content_type, reason = raw[at:stop].decode().split("\t", 2)
            number, code, size = (_number(part) for part in head.split(" "))
            at = stop + 1 + size
            if at > len(raw) or number >= count or not 200 <= code <= 699:
                raise BatchError("cut short, of a message that was not sent, or no final answer")
            body = raw[stop + 1 : at].decode()
            answers[number] = ItemAnswer(code, reason, body, content_type)
    except ValueError as error:
        raise BatchError(f"not the answer to a batch: {error}") from None
    return answers


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 7):
        raise ValueError(f"{text[:20]!r} is no number")
    return int(text)

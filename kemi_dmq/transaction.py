"""Requests of the engine and their answers, without tm (RFC 3261, 17.1.2).

The engine sends few requests, all of them idempotent, so a table with retransmissions is enough;
it keeps the engine clear of tm's locks (which a stop under load may leave held) and lets the
simulator drive the same code.  Pure: time comes in, texts go out.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from .membership import Notify
from .wire import SipUri

T1 = 0.5
T2 = 4.0
#: How long an answer is still known after the request has timed out.
LINGER = 32.0


@dataclass(slots=True)
class _Request:
    notice: Notify
    text: str
    gives_up: float
    pause: float
    timed_out: bool = False


class ClientTransactions:
    def __init__(self) -> None:
        self._open: dict[str, _Request] = {}
        self._due: list[tuple[float, str]] = []  # may hold entries of ended requests

    def start(self, call_id: str, notice: Notify, text: str, now: float) -> None:
        """Remember a request that is being sent now; it is given up after notice.patience."""
        self._open[call_id] = _Request(notice, text, now + notice.patience, notice.again)
        again = notice.again if notice.to.transport == "udp" else notice.patience
        first = now + min(again, notice.patience)
        heapq.heappush(self._due, (first, call_id))

    def answered(self, call_id: str) -> Notify | None:
        """End the request with this Call-ID; None if it is not ours or was answered before."""
        request = self._open.pop(call_id, None)
        return request.notice if request else None

    def forget(self, node: tuple[str, int]) -> None:
        """Of requests to a node (SipUri.key) no outcome is wanted any more."""
        for call_id, request in list(self._open.items()):
            if request.notice.to.key == node:
                del self._open[call_id]

    def next_deadline(self) -> float | None:
        while self._due and self._due[0][1] not in self._open:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def tick(self, now: float, send: Callable[[SipUri, str], None]) -> list[Notify]:
        """Retransmit what is due; gives what was not answered in time."""
        timed_out = []
        while self._due and self._due[0][0] <= now:
            _, call_id = heapq.heappop(self._due)
            request = self._open.get(call_id)
            if request is None:
                continue
            if request.timed_out:
                del self._open[call_id]
            elif now >= request.gives_up:
                request.timed_out = True
                timed_out.append(request.notice)
                heapq.heappush(self._due, (now + LINGER, call_id))
            else:
                send(request.notice.place, request.text)
                request.pause = min(2 * request.pause, T2)
                when = min(now + request.pause, request.gives_up)
                heapq.heappush(self._due, (when, call_id))
        return timed_out

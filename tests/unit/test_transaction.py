from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kemi_dmq.membership import Notify
from kemi_dmq.transaction import LINGER, ClientTransactions
from kemi_dmq.wire import SipUri

TO = SipUri("10.0.0.2", 5060)


class Sent:
    def __init__(self) -> None:
        self.times: list[float] = []
        self.table = ClientTransactions()

    def run(self, until: float) -> list[tuple[float, Notify]]:
        """Serve all deadlines up to a time; what timed out, and when."""
        timed_out = []
        while (deadline := self.table.next_deadline()) is not None and deadline <= until:
            due = self.table.tick(deadline, lambda to, text: self.times.append(deadline))
            timed_out += [(deadline, notice) for notice in due]
        return timed_out


def notice(patience: float = 8.0, transport: str = "udp") -> Notify:
    return Notify(TO.with_transport(transport), "", 1, patience)


def test_a_request_is_sent_again_with_doubled_pauses_of_at_most_four_seconds() -> None:
    sent = Sent()
    sent.table.start("a", notice(20.0), "text", 0.0)
    assert sent.run(20.0) == [(20.0, notice(20.0))]
    assert sent.times == [0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5]


def test_a_request_is_given_up_after_its_patience_once() -> None:
    sent = Sent()
    sent.table.start("a", notice(1.0), "text", 100.0)
    assert sent.run(100.9) == []
    assert sent.run(1000.0) == [(101.0, notice(1.0))]
    assert sent.table.next_deadline() is None


def test_over_a_stream_nothing_is_sent_again() -> None:
    sent = Sent()
    sent.table.start("a", notice(8.0, "tcp"), "text", 0.0)
    assert sent.run(50.0) == [(8.0, notice(8.0, "tcp"))]
    assert sent.times == []


def test_an_answer_ends_a_request_and_counts_once() -> None:
    sent = Sent()
    sent.table.start("a", notice(), "text", 0.0)
    assert sent.table.answered("a") == notice()
    assert sent.table.answered("a") is None
    assert sent.run(100.0) == [] and sent.times == []
    assert sent.table.next_deadline() is None


def test_an_answer_of_nobody_is_not_ours() -> None:
    assert ClientTransactions().answered("x") is None


def test_a_late_answer_is_still_known_for_a_while() -> None:
    sent = Sent()
    sent.table.start("a", notice(1.0), "text", 0.0)
    sent.table.start("b", notice(1.0), "text", 0.0)
    sent.run(1.0 + LINGER - 1)
    assert sent.table.answered("a") == notice(1.0)
    sent.run(1.0 + LINGER)
    assert sent.table.answered("b") is None


@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.floats(0.1, 20), st.one_of(st.none(), st.floats(0, 60))),
        min_size=1,
        max_size=8,
    )
)
def test_each_request_has_exactly_one_outcome(
    plan: list[tuple[float, float, float | None]],
) -> None:
    """Started at, patience, and answered after: whatever the order, one outcome or a late one."""
    table = ClientTransactions()
    starts = sorted((start, str(i)) for i, (start, _, _) in enumerate(plan))
    answers = sorted(
        (plan[i][0] + (plan[i][2] or 0), str(i)) for i in range(len(plan)) if plan[i][2] is not None
    )
    timed_out: list[str] = []
    answered: list[str] = []
    now = 0.0
    while True:
        deadline = table.next_deadline()
        times = [t for t in (deadline, *(t for t, _ in starts[:1] + answers[:1])) if t is not None]
        if not times:
            break
        assert min(times) >= now - 1e-9, "a deadline in the past"
        now = min(times)
        if starts and starts[0][0] == now:
            name = starts.pop(0)[1]
            own = Notify(TO.with_user(name), "", 1, plan[int(name)][1])
            table.start(name, own, "text", now)
        elif answers and answers[0][0] == now:
            found = table.answered(answers.pop(0)[1])
            answered += [found.to.user] if found else []
        else:
            timed_out += [n.to.user for n in table.tick(now, lambda to, text: None)]
    assert len(set(timed_out)) == len(timed_out) and len(set(answered)) == len(answered)
    for i, (_, patience, delay) in enumerate(plan):
        if delay is None:
            assert str(i) in timed_out and str(i) not in answered
        elif delay < patience - 1e-6:
            assert str(i) in answered and str(i) not in timed_out
        elif patience + 1e-6 < delay < patience + LINGER - 1e-6:
            assert str(i) in answered and str(i) in timed_out

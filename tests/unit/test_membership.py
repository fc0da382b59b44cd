from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from kemi_dmq.gossip import mark
from kemi_dmq.membership import (
    ASK_AGAIN,
    ASK_ALONE,
    DISABLED,
    DOWN,
    PROBE_MAX,
    QUIET,
    UP,
    Action,
    FirstList,
    Membership,
    Notify,
    Publish,
    Resolve,
    Tell,
)
from kemi_dmq.node import Status
from kemi_dmq.settings import check
from kemi_dmq.wire import Agent, Line, SipUri, build_body, parse_body

from . import strategies as own
from .conftest import node

LOCAL, A, B, C = (SipUri(f"10.0.0.{n}", 5060) for n in (1, 2, 3, 4))
PYTHON = Agent(True, (6, 1))
C_AGENT = Agent(False, (5, 6))


def make(**given_: Any) -> Membership:
    given_ = {"server_address": "sip:10.0.0.1:5060", "ping_interval": 5, **given_}
    return Membership(check(given_), random.Random(1))


def lines(*uris: SipUri, status: str = "active") -> list[Line]:
    return [Line(uri, status) for uri in uris]


def statuses(membership: Membership) -> dict[str, str]:
    return {node.host: node.status.value for node in membership.nodes() if not node.local}


def of(kind: type[Any], actions: list[Action]) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


def hello(
    membership: Membership, sender: SipUri, now: float = 0.0, *more: SipUri, **given_: Any
) -> list[Action]:
    """sender, who knows this node, introduces itself and tells of more."""
    given_ = {"agent": C_AGENT, "max_forwards": 1, **given_}
    return membership.on_notification(sender, lines(sender, LOCAL, *more), now=now, **given_)


def answer(membership: Membership, action: Notify, now: float, *more: SipUri) -> list[Action]:
    return membership.on_answer(action, 200, lines(action.to, LOCAL, *more), C_AGENT, now)


class Silence:
    """A node that answers nothing."""

    def __init__(self, membership: Membership, now: float, sent: Sequence[Notify]) -> None:
        self.membership = membership
        self.now = now
        self.sent = list(sent)
        self.sent_at = [now] * len(sent)

    def fail(self) -> list[Action]:
        """What follows when the next notification to it is not answered."""
        while not self.sent:
            deadline = self.membership.next_deadline()
            if deadline is None:
                return []
            self.now = max(self.now, deadline)
            self.took(self.membership.tick(self.now))
        notice = self.sent.pop()
        self.now += notice.patience
        return self.took(self.membership.on_no_answer(notice, self.now))

    def took(self, actions: list[Action]) -> list[Action]:
        self.sent += of(Notify, actions)
        assert len(self.sent) < 2
        self.sent_at += [self.now] * len(of(Notify, actions))
        return actions


# Learning of nodes


def test_a_node_that_introduces_itself_is_listed_pinged_and_told_of() -> None:
    membership = make()
    membership.start(0.0)
    actions = hello(membership, A)
    assert statuses(membership) == {"10.0.0.2": "active"}
    assert [(tell.event, tell.node.host) for tell in of(Tell, actions)] == [(UP, "10.0.0.2")]
    assert [notice.to for notice in of(Notify, actions)] == [A]
    assert len(of(Publish, actions)) == 1 and len(of(FirstList, actions)) == 1
    assert of(FirstList, hello(membership, A)) == [], "init runs once"


def test_news_with_hops_left_is_passed_on_to_all_active_nodes() -> None:
    membership = make()
    hello(membership, A)
    hello(membership, B)
    actions = hello(membership, A, 1.0, C, max_forwards=3)
    assert {notice.to: notice.max_forwards for notice in of(Notify, actions)} == {A: 2, B: 2, C: 2}
    assert of(Notify, hello(membership, A, 1.0, C, max_forwards=3)) == [], "no news"


def test_news_without_hops_left_goes_no_further() -> None:
    membership = make()
    hello(membership, A)
    actions = hello(membership, A, 1.0, C, max_forwards=1)
    assert [notice.to for notice in of(Notify, actions)] == [C]


@pytest.mark.parametrize("status", ["not_active", "disabled"])
def test_a_node_that_is_away_is_not_learned(status: str) -> None:
    membership = make()
    membership.on_notification(A, lines(A, B, status=status), C_AGENT, 1, 0.0)
    assert statuses(membership) == {}


def test_a_name_is_looked_up_before_its_node_is_listed() -> None:
    membership = make()
    name = SipUri("node.example", 5060)
    assert of(Resolve, hello(membership, A, 0.0, name)) == [Resolve("node.example")]
    assert of(Resolve, hello(membership, A, 0.1, name)) == [], "it is being looked up"
    assert "node.example" not in statuses(membership)
    membership.on_resolved("node.example", ["10.0.0.9"], 0.2)
    assert [n.address for n in membership.nodes() if n.host == "node.example"] == ["10.0.0.9"]


def test_a_name_that_does_not_resolve_is_tried_again_after_a_while() -> None:
    membership = make()
    name = SipUri("node.example", 5060)
    hello(membership, A, 0.0, name)
    membership.on_resolved("node.example", [], 0.1)
    assert of(Resolve, hello(membership, A, 5.0, name)) == []
    assert of(Resolve, hello(membership, A, 10.2, name)) == [Resolve("node.example")]


def test_a_name_and_its_address_are_one_node_under_the_uri_that_it_gives_itself() -> None:
    membership = make()
    name = SipUri("node.example", 5060)
    hello(membership, B)
    hello(membership, A)
    hello(membership, B, 1.0, name)
    membership.on_resolved("node.example", ["10.0.0.2"], 1.1)
    assert set(statuses(membership)) == {"10.0.0.2", "10.0.0.3"}, "others' names do not count"
    hello(membership, name, 2.0)
    membership.on_resolved("node.example", ["10.0.0.2"], 2.1)
    assert set(statuses(membership)) == {"node.example", "10.0.0.3"}


def test_a_name_of_this_node_is_not_another_node() -> None:
    membership = make()
    hello(membership, A, 0.0, SipUri("me.example", 5060))
    membership.on_resolved("me.example", ["10.0.0.1"], 0.1)
    assert set(statuses(membership)) == {"10.0.0.2"}


# What others say


def test_a_third_party_never_revives_a_node_it_causes_a_probe() -> None:
    membership = make()
    for uri in (A, B):
        for notice in of(Notify, hello(membership, uri)):
            answer(membership, notice, 0.0)
    membership.on_notification(B, lines(B, status="disabled"), C_AGENT, 1, 1.0)
    assert of(Notify, membership.tick(1.5)) == [], "the next probe is due at 2"
    actions = hello(membership, A, 1.6, B)
    assert statuses(membership)["10.0.0.3"] == "disabled"
    (probe,) = of(Notify, actions)
    assert probe.to == B
    answer(membership, probe, 3.1)
    assert statuses(membership)["10.0.0.3"] == "active"


def test_a_third_party_never_demotes_a_node_it_causes_a_probe() -> None:
    membership = make()
    hello(membership, A)
    for notice in of(Notify, hello(membership, B)):
        answer(membership, notice, 0.0)
    actions = membership.on_notification(A, lines(B, status="disabled"), C_AGENT, 1, 2.0)
    assert statuses(membership)["10.0.0.3"] == "active"
    assert B in [notice.to for notice in of(Notify, actions)]


def test_a_node_is_believed_about_itself() -> None:
    membership = make()
    hello(membership, A)
    actions = membership.on_notification(A, lines(A, status="not_active"), C_AGENT, 1, 1.0)
    assert [tell.event for tell in of(Tell, actions)] == [DOWN]
    actions = hello(membership, A, 2.0)
    assert [tell.event for tell in of(Tell, actions)] == [UP]
    assert len(of(FirstList, actions)) == 1, "it has come back"


def test_init_runs_once_for_a_node_that_is_back_before_its_engine() -> None:
    membership = make()
    uri = f"{A};status={{}};inc={{}}\r\n"

    def says(status: str, incarnation: int, now: float) -> list[Action]:
        said, _ = parse_body(uri.format(status, incarnation))
        return membership.on_notification(A, said, PYTHON, 1, now)

    assert len(of(FirstList, says("active", 10_000, 0.0))) == 1
    says("not_active", 10_000, 1.0)
    probe = Notify(A, "", 1, 1.0, address=A.host)
    actions = membership.on_answer(probe, 200, lines(A), PYTHON, 2.0)  # by one of its workers
    assert [tell.event for tell in of(Tell, actions)] == [UP] and len(of(FirstList, actions)) == 1
    assert of(FirstList, says("active", 50_000, 2.1)) == []
    assert len(of(FirstList, says("active", 90_000, 3.0))) == 1, "it has started again"


def test_nobody_demotes_the_local_node() -> None:
    membership = make()
    hello(membership, A)
    local = membership.local
    for sender in (A, local):
        membership.on_notification(sender, lines(local, status="disabled"), C_AGENT, 1, 1.0)
    assert membership.nodes()[0].status is Status.ACTIVE
    assert [n.local for n in membership.nodes()] == [True, False]


# Failures


def silent(membership: Membership) -> Silence:
    return Silence(membership, 0.0, of(Notify, hello(membership, A)))


def test_a_lost_ping_disables_and_the_next_removes_as_in_c() -> None:
    membership = make()
    silence = silent(membership)
    assert [tell.event for tell in of(Tell, silence.fail())] == [DISABLED]
    assert statuses(membership) == {"10.0.0.2": "disabled"}
    first = silence.now
    while statuses(membership):
        silence.fail()
    assert first + 5 <= silence.now < first + 15, "one failure counts in a ping_interval"


def test_pings_without_answer_are_counted_and_shown() -> None:
    membership = make(fail_count_enabled=1, fail_count_threshold_not_active=9)
    silence = Silence(membership, 0.0, of(Notify, hello(membership, A)))

    def count() -> int:
        return membership.nodes()[1].fail_count

    for failed in (1, 2):
        assert of(Publish, silence.fail()) and count() == failed
    assert of(Publish, hello(membership, A, silence.now)) and count() == 0
    assert not of(Publish, hello(membership, A, silence.now))


def test_with_remove_inactive_0_it_stays_as_not_active() -> None:
    membership = make(remove_inactive=0)
    silence = silent(membership)
    assert [tell.event for tell in of(Tell, silence.fail())] == [DOWN]
    for _ in range(10):
        silence.fail()
    assert statuses(membership) == {"10.0.0.2": "not_active"}


def test_with_fail_counts_the_thresholds_apply() -> None:
    membership = make(
        fail_count_enabled=1, fail_count_threshold_not_active=1, fail_count_threshold_disabled=3
    )
    silence = silent(membership)
    seen = ["active"]
    while statuses(membership):
        silence.fail()
        status = statuses(membership).get("10.0.0.2", "gone")
        if status != seen[-1]:
            seen.append(status)
        assert silence.now < 100
    assert seen == ["active", "not_active", "disabled", "gone"]


@pytest.mark.parametrize("code", [404, 408, 500, 202])
def test_an_answer_other_than_200_counts_as_none(code: int) -> None:
    membership = make()
    (notice,) = of(Notify, hello(membership, A))
    membership.on_answer(notice, code, [], C_AGENT, 0.1)
    assert statuses(membership) == {"10.0.0.2": "disabled"}


def test_one_503_is_asked_again_and_the_second_counts() -> None:
    membership = make()
    (notice,) = of(Notify, hello(membership, A))
    assert not of(Notify, membership.on_answer(notice, 503, [], C_AGENT, 0.1))
    assert statuses(membership) == {"10.0.0.2": "active"}
    (again,) = of(Notify, membership.tick(1.1))
    membership.on_answer(again, 503, [], C_AGENT, 1.2)
    assert statuses(membership) == {"10.0.0.2": "disabled"}


def test_a_late_answer_revives_and_an_old_failure_does_not_count_any_more() -> None:
    membership = make()
    (notice,) = of(Notify, hello(membership, A))
    membership.on_no_answer(notice, 8.0)
    answer(membership, notice, 9.0)
    assert statuses(membership) == {"10.0.0.2": "active"}
    membership.on_no_answer(notice, 9.1)
    assert statuses(membership) == {"10.0.0.2": "active"}


def test_a_node_that_speaks_is_not_judged_by_a_ping_that_was_sent_before() -> None:
    """As when a cut heals between a ping and its end."""
    membership = make()
    membership.start(0.0)
    silence = Silence(membership, 0.0, of(Notify, hello(membership, A)))
    silence.fail()
    assert statuses(membership) == {"10.0.0.2": "disabled"}
    silence.took(membership.tick(silence.now + 1.0))
    (before,) = silence.sent
    spoke = silence.now + 1.5
    actions = hello(membership, A, spoke)
    assert [tell.event for tell in of(Tell, actions)] == [UP]
    (after,) = of(Notify, actions)
    assert of(Tell, membership.on_no_answer(before, spoke + 0.5)) == []
    assert statuses(membership) == {"10.0.0.2": "active"}
    membership.on_no_answer(after, spoke + after.patience)
    assert statuses(membership) == {"10.0.0.2": "disabled"}


def test_a_node_that_speaks_is_asked_again_before_it_is_judged_but_once() -> None:
    membership = make()
    membership.start(0.0)
    (first,) = of(Notify, hello(membership, A))
    assert of(Notify, hello(membership, A, 5.0)) == []
    (second,) = of(Notify, membership.tick(6.0))
    assert of(Tell, membership.on_no_answer(first, 8.0)) == []
    hello(membership, A, 10.0)
    assert [tell.event for tell in of(Tell, membership.on_no_answer(second, 14.0))] == [DISABLED]


def test_a_node_that_is_away_is_probed_with_a_growing_pause_and_then_forgotten() -> None:
    membership = make()
    silence = silent(membership)
    silence.fail()
    away = silence.now
    while silence.sent or membership.next_deadline() is not None:
        silence.fail()
    times = [time for time in silence.sent_at if time > away]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses[0] <= 2 and 7 < pauses[-1] <= PROBE_MAX + 1
    assert 600.0 - 20 < times[-1] - away < 600.0 + 20
    hello(membership, A, silence.now)
    assert statuses(membership) == {"10.0.0.2": "active"}


# Notification addresses


def contact(**given_: Any) -> Membership:
    return make(notification_address="sip:10.0.0.2", **given_)


def test_a_notification_address_is_asked_every_second_until_somebody_answers() -> None:
    membership = contact()
    asked = [(0.0, of(Notify, membership.start(0.0)))]
    while len(asked) < 4:
        deadline = membership.next_deadline()
        assert deadline is not None
        if notices := of(Notify, membership.tick(deadline)):
            asked.append((deadline, notices))
    assert [time for time, _ in asked] == [n * ASK_ALONE for n in range(4)]
    assert all(notices[0].to == A and notices[0].max_forwards == 2 for _, notices in asked)
    (ping,) = of(Notify, answer(membership, asked[-1][1][0], 3.1))
    answer(membership, ping, 3.2)
    deadline = membership.next_deadline()
    assert deadline is not None and deadline > 3.2 + 4.5 - 1e-6, "from now on it is pinged"


def test_a_node_that_speaks_of_itself_by_a_name_is_introduced_to_where_it_was_asked() -> None:
    """The name may resolve nowhere here."""
    membership = contact()
    (question,) = of(Notify, membership.start(0.0))
    assert question.body == ""
    named = [Line(SipUri("node.example", 5060), "active", 7)]
    actions = membership.on_answer(question, 200, named, PYTHON, 0.1)
    (introduction,) = of(Notify, actions)
    assert introduction.to == question.to
    assert parse_body(introduction.body)[0][0].uri == LOCAL
    assert of(Notify, membership.on_answer(introduction, 200, named, PYTHON, 0.2)) == []


def test_a_notification_address_without_answer_is_no_node() -> None:
    membership = contact()
    (notice,) = of(Notify, membership.start(0.0))
    membership.on_no_answer(notice, 1.0)
    assert statuses(membership) == {}


def test_behind_a_name_all_addresses_are_asked_with_multi_notify() -> None:
    for multi, expected in ((0, ["10.0.0.5"]), (1, ["10.0.0.5", "10.0.0.6"])):
        membership = make(notification_address="sip:bus.example:5070", multi_notify=multi)
        srv = "bus.example" if multi else ""
        assert of(Resolve, membership.start(0.0)) == [Resolve("bus.example", srv)]
        actions = membership.on_resolved("bus.example", ["10.0.0.5", "10.0.0.6"], 0.1, srv)
        assert [n.to.host for n in of(Notify, actions)] == expected
        assert all(n.to.port == 5070 for n in of(Notify, actions))


@pytest.mark.parametrize(
    ("uri", "multi", "srv"),
    [
        # As the C module: the name as it stands; and the core's way (RFC 3263) without a port.
        ("sip:_sip._udp.bus.example", 1, "_sip._udp.bus.example"),
        ("sip:bus.example:5070", 1, "bus.example"),
        ("sip:bus.example", 0, "_sip._udp.bus.example"),
        ("sip:bus.example;transport=tcp", 0, "_sip._tcp.bus.example"),
        ("sip:bus.example;transport=tls", 0, "_sips._tcp.bus.example"),
        ("sip:bus.example:5060", 0, ""),
    ],
)
def test_whose_srv_records_are_asked_for(uri: str, multi: int, srv: str) -> None:
    membership = make(notification_address=uri, multi_notify=multi)
    (question,) = of(Resolve, membership.start(0.0))
    assert question.srv == srv


@pytest.mark.parametrize(
    ("uri", "multi", "asked"),
    [
        # all targets and the name's own addresses
        ("sip:b.example", 1, ["10.0.0.5:5070", "10.0.0.6:5080", "10.0.0.7:5060"]),
        # a port in the URI chooses among the targets
        ("sip:b.example:5080", 1, ["10.0.0.6:5080", "10.0.0.7:5080"]),
        ("sip:b.example", 0, ["10.0.0.5:5070"]),
    ],
)
def test_srv_targets_go_before_the_names_own_addresses(
    uri: str, multi: int, asked: list[str]
) -> None:
    membership = make(notification_address=uri, multi_notify=multi)
    (question,) = of(Resolve, membership.start(0.0))
    targets = [("10.0.0.5", 5070), ("10.0.0.6", 5080)]
    actions = membership.on_resolved("b.example", ["10.0.0.7"], 0.1, question.srv, targets)
    assert [f"{n.to.host}:{n.to.port}" for n in of(Notify, actions)] == asked


def test_srv_targets_are_asked_where_the_name_has_no_address() -> None:
    membership = make(notification_address="sip:_sip._udp.bus.example", multi_notify=1)
    (question,) = of(Resolve, membership.start(0.0))
    actions = membership.on_resolved(
        question.host, [], 0.1, question.srv, [("10.0.0.5", 5070), ("10.0.0.5", 5070)]
    )
    assert [str(n.to) for n in of(Notify, actions)] == ["sip:10.0.0.5:5070"]


def test_this_node_as_its_own_notification_address_is_not_asked() -> None:
    membership = make(notification_address="sip:10.0.0.1")
    assert of(Notify, membership.start(0.0)) == []
    assert of(Notify, membership.tick(QUIET)) == [] and membership.next_deadline() is None
    membership = make(notification_address="sip:me.example:5060")
    membership.start(0.0)
    assert of(Notify, membership.on_resolved("me.example", ["10.0.0.1"], 0.1)) == []
    membership.tick(QUIET)
    assert (membership.next_deadline() or 99) >= ASK_ALONE


def test_a_notification_node_that_is_away_stays_as_not_active_and_is_asked_again() -> None:
    membership = contact()
    (notice,) = of(Notify, membership.start(0.0))
    silence = Silence(membership, 0.1, of(Notify, answer(membership, notice, 0.1)))
    silence.fail()
    assert statuses(membership) == {"10.0.0.2": "not_active"}
    assert silence.sent or (membership.next_deadline() or 1e9) <= silence.now + ASK_AGAIN


# Leave, start again


def test_the_leave_says_to_each_node_what_it_understands() -> None:
    membership = make()
    hello(membership, A, agent=PYTHON)
    hello(membership, B, agent=C_AGENT)
    hello(membership, C, agent=Agent())
    bodies = {n.to: n.body for n in membership.leave_notices()}
    assert bodies == {
        A: "sip:10.0.0.1:5060;status=not_active;inc=1\r\n",
        B: "sip:10.0.0.1:5060;status=timeout\r\n",
        C: "sip:10.0.0.1:5060;status=disabled\r\n",
    }


def test_after_a_failure_of_the_engine_the_published_nodes_are_known_and_asked() -> None:
    membership = make()
    known = [
        node("sip:10.0.0.1", local=True),
        node("sip:10.0.0.2"),
        node("sip:10.0.0.3", Status.DISABLED),
    ]
    actions = membership.start(100.0, known)
    assert statuses(membership) == {"10.0.0.2": "active", "10.0.0.3": "disabled"}
    assert {notice.to for notice in of(Notify, actions)} == {B}
    deadline = membership.next_deadline()
    assert deadline is not None and deadline <= 101, "A is probed"
    assert of(FirstList, hello(membership, A, 101.0)) == [], "init has run before"


# The operator's commands


def test_a_node_that_is_added_is_active_and_pinged_at_once() -> None:
    membership = make()
    membership.start(0.0)
    actions = membership.add(A, 1.0)
    assert statuses(membership) == {"10.0.0.2": "active"}
    assert [tell.event for tell in of(Tell, actions)] == [UP] and len(of(Publish, actions)) == 1
    assert [notice.to for notice in of(Notify, actions)] == [A]
    assert membership.add(A, 2.0) == [], "it is listed already"
    assert membership.add(membership.local, 2.0) == []


def test_a_name_that_is_added_is_looked_up() -> None:
    membership = make()
    assert of(Resolve, membership.add(SipUri("node.example", 5060), 0.0))
    membership.on_resolved("node.example", ["10.0.0.9"], 0.1)
    assert statuses(membership) == {"node.example": "active"}


def test_a_node_that_left_the_list_and_is_probed_can_be_added() -> None:
    membership = make()
    silence = silent(membership)
    while statuses(membership):
        silence.fail()
    assert [tell.event for tell in of(Tell, membership.add(A, silence.now))] == [UP]
    assert statuses(membership) == {"10.0.0.2": "active"}


def test_a_node_that_is_removed_is_forgotten_until_it_speaks() -> None:
    membership = make()
    hello(membership, A)
    actions = membership.remove(A, 1.0)
    assert statuses(membership) == {} and len(of(Publish, actions)) == 1
    assert [tell.event for tell in of(Tell, actions)] == [DISABLED]
    assert of(Notify, actions) == [], "nobody is told"
    assert membership.next_deadline() is None, "it is not probed"
    assert membership.remove(A, 2.0) == []
    assert [tell.event for tell in of(Tell, hello(membership, A, 3.0))] == [UP]


def test_a_disabled_node_is_removed_without_another_event() -> None:
    membership = make()
    hello(membership, A)
    membership.change_status(A, Status.DISABLED, 1.0)
    actions = membership.remove(A, 2.0)
    assert of(Tell, actions) == [] and len(of(Publish, actions)) == 1


@pytest.mark.parametrize(("status", "event"), [("not_active", DOWN), ("disabled", DISABLED)])
def test_a_changed_status_stays_until_the_node_answers_the_next_ping(
    status: str, event: str
) -> None:
    membership = make()
    for notice in of(Notify, hello(membership, A)):
        answer(membership, notice, 0.0)
    actions = membership.change_status(A, Status(status), 1.0)
    assert [tell.event for tell in of(Tell, actions)] == [event]
    assert statuses(membership) == {"10.0.0.2": status} and of(Notify, actions) == []
    deadline = membership.next_deadline()
    assert deadline is not None and 5.5 <= deadline <= 6.0, "ping_interval later"
    assert of(Tell, membership.change_status(A, Status(status), 1.0)) == []
    (ping,) = of(Notify, membership.tick(6.0))
    assert [tell.event for tell in of(Tell, answer(membership, ping, 6.1))] == [UP]


def test_a_status_can_be_changed_to_active_and_a_dead_node_does_not_stay_so() -> None:
    membership = make()
    silence = silent(membership)
    silence.fail()
    now = silence.now
    actions = membership.change_status(A, Status.ACTIVE, now)
    assert [tell.event for tell in of(Tell, actions)] == [UP]
    assert [tell.event for tell in of(Tell, silence.fail())] == [DISABLED]
    assert membership.change_status(B, Status.ACTIVE, now) == [], "it is not on the list"


# Between Python nodes


def python_node_line(uri: SipUri, state: str = "", by: str = "", incarnation: int = 7) -> Line:
    more = f"state={state}" if state else ""
    return Line(uri, "active", incarnation, more + (f";by={by}" if by else ""))


def test_our_own_miss_confirms_a_suspicion_that_we_heard_of() -> None:
    """Nobody but A and this node: what A says of B, B's silence confirms."""
    membership = make()
    for uri in (A, B):
        membership.on_notification(uri, [python_node_line(uri)], PYTHON, 1, 0.0)
    heard = [python_node_line(A), python_node_line(B, "suspect", "0abc")]
    membership.on_notification(A, heard, PYTHON, 1, 0.0)
    now, told = 0.0, set()
    while now < 3:
        now = membership.next_deadline() or 3.0
        for notice in of(Notify, membership.tick(now)):
            told |= {line.more for line in parse_body(notice.body)[0] if line.uri == B}
            if notice.to == A:
                membership.on_answer(notice, 200, [python_node_line(A)], PYTHON, now)
    ours = mark(membership.local)
    assert f"state=suspect;by={'.'.join(sorted(['0abc', ours]))}" in told


def test_a_node_that_left_is_still_one_that_left_after_the_engine_failed() -> None:
    """No late datagram revives it; one that is dead would be alive as soon as it answers."""
    statuses_after = {}
    for state in ("left", "down"):
        membership = make()
        known = [node(str(A), status=Status.NOT_ACTIVE, python=True)]
        membership.start(0.0, known, [python_node_line(A, state)])
        late = Notify(A, "", 1)
        membership.on_answer(late, 200, [python_node_line(A)], PYTHON, 21.0)
        statuses_after[state] = statuses(membership)["10.0.0.2"]
    assert statuses_after == {"left": "not_active", "down": "active"}


# Properties


@given(st.lists(own.address_uris, max_size=12), st.randoms(use_true_random=False))
def test_merging_is_idempotent_and_the_order_of_lines_does_not_matter(
    uris: list[SipUri], rng: random.Random
) -> None:
    results = []
    for repeat, shuffled in ((1, False), (3, False), (1, True)):
        membership = make()
        hello(membership, A)
        told = list(uris)
        if shuffled:
            rng.shuffle(told)
        for _ in range(repeat):
            body, bad = parse_body(build_body(told))
            assert bad == 0
            membership.on_notification(A, body, PYTHON, 2, 1.0)
        results.append({(n.host, n.port): n.status for n in membership.nodes()})
    assert results[0] == results[1] == results[2]


hosts = st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "a.example", "b.example"])
some_uris = st.builds(SipUri, hosts, st.sampled_from([5060, 5070]))
python_words = ["", "state=suspect", "state=suspect;by=aa.bb", "state=down", "state=left"]
python_words += ["digest=00ff", "digest=00ff;want=list", "digest=1;probe=10.0.0.3:5060"]
python_words += ["digest=1;reached=10.0.0.3:5060", "digest=1;missed=10.0.0.2:5070", "state=what"]
some_lines = st.lists(
    st.builds(Line, some_uris, own.statuses)
    | st.builds(
        Line, some_uris, st.just("active"), st.integers(1, 4), st.sampled_from(python_words)
    ),
    max_size=5,
)
agents = st.sampled_from([PYTHON, C_AGENT, Agent(), Agent(False, (6, 1))])


class Interleavings(RuleBasedStateMachine):
    """Any order of ticks, answers, failures, lists and look-ups."""

    membership: Membership

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.ticked = True
        self.open: list[Notify] = []
        self.resolving: list[Resolve] = []
        self.python: set[SipUri] = set()
        self.told: dict[str, str] = {}

    @initialize(
        contacts=st.lists(some_uris, max_size=2),
        fail_count=st.integers(0, 1),
        remove=st.integers(0, 1),
        multi=st.integers(0, 1),
    )
    def begin(self, contacts: list[SipUri], fail_count: int, remove: int, multi: int) -> None:
        self.membership = make(
            notification_address=[str(uri) for uri in contacts],
            fail_count_enabled=fail_count,
            remove_inactive=remove,
            multi_notify=multi,
        )
        self.take(self.membership.start(self.now))

    def take(self, actions: list[Action]) -> None:
        self.ticked = True
        for action in actions:
            if isinstance(action, Notify):
                assert action.to.key != self.membership.local.key, "asks itself"
                self.open.append(action)
                if action.to not in self.python:
                    assert len(action.body.encode()) <= 1000
                    found, bad = parse_body(action.body)
                    assert not bad and all(line.status == "active" for line in found)
                assert action.body.count(f"{self.membership.local};") <= 1
            elif isinstance(action, Resolve):
                self.resolving.append(action)
            elif isinstance(action, Tell):
                assert not action.node.local
                key = f"{action.node.host}:{action.node.port}"
                assert self.told.get(key) != action.event, "told twice of one change"
                self.told[key] = action.event

    @rule(seconds=st.floats(0, 30))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.membership.tick(self.now))

    @rule()
    def to_the_next_deadline(self) -> None:
        deadline = self.membership.next_deadline()
        if deadline is not None:
            self.now = max(self.now, deadline)
            self.take(self.membership.tick(self.now))

    @rule(sender=some_uris, told=some_lines, agent=agents, hops=st.integers(0, 3))
    def a_list_arrives(self, sender: SipUri, told: list[Line], agent: Agent, hops: int) -> None:
        if agent.python:
            self.python |= {sender.with_transport("udp")}
        elif self.membership.local.key != sender.key:
            self.python -= {sender}
        self.take(self.membership.on_notification(sender, told, agent, hops, self.now))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), told=some_lines, agent=agents, code=st.sampled_from([200, 200, 404, 500]))
    def an_answer_arrives(
        self, data: st.DataObject, told: list[Line], agent: Agent, code: int
    ) -> None:
        notice = data.draw(st.sampled_from(self.open))
        if code == 200:
            (self.python.add if agent.python else self.python.discard)(notice.to)
        self.take(self.membership.on_answer(notice, code, told, agent, self.now))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def no_answer_arrives(self, data: st.DataObject) -> None:
        notice = data.draw(st.sampled_from(self.open))
        self.take(self.membership.on_no_answer(notice, self.now))

    @precondition(lambda self: self.resolving)
    @rule(
        addresses=st.lists(st.sampled_from(["10.0.0.1", "10.0.0.8", "10.0.0.9"]), max_size=2),
        places=st.lists(st.tuples(st.just("10.0.0.8"), st.sampled_from([5060, 5070])), max_size=2),
    )
    def a_look_up_ends(self, addresses: list[str], places: list[tuple[str, int]]) -> None:
        asked = self.resolving.pop(0)
        found = places if asked.srv else []
        actions = self.membership.on_resolved(asked.host, addresses, self.now, asked.srv, found)
        self.take(actions)

    @rule(uri=some_uris, command=st.sampled_from(["add", "remove", *Status]))
    def the_operator_says(self, uri: SipUri, command: str | Status) -> None:
        if isinstance(command, Status):
            self.take(self.membership.change_status(uri, command, self.now))
        else:
            self.take(getattr(self.membership, command)(uri, self.now))

    @invariant()
    def the_list_is_sound(self) -> None:
        if not hasattr(self, "membership"):
            return
        nodes = self.membership.nodes()
        keys = [(n.host, n.port) for n in nodes]
        assert len(set(keys)) == len(keys), "a node twice"
        assert [n.local for n in nodes] == [True] + [False] * (len(nodes) - 1)
        assert nodes[0].status is Status.ACTIVE
        deadline = self.membership.next_deadline()
        assert deadline is None or deadline >= self.now - 1e-6, "a deadline that has passed"
        for notice in self.membership.leave_notices():
            assert len(parse_body(notice.body)[0]) == 1

    @invariant()
    def who_is_listed_as_active_was_told_of(self) -> None:
        if hasattr(self, "membership"):
            for n in self.membership.nodes():
                if n.active and not n.local:
                    assert self.told.get(f"{n.host}:{n.port}") == UP


Interleavings.TestCase.settings = hypothesis_settings(
    max_examples=120, stateful_step_count=40, deadline=None, derandomize=True
)
TestInterleavings = Interleavings.TestCase

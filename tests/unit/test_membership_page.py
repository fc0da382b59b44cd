"""docs/membership.md shows the table of transitions and the settings as they are."""

from __future__ import annotations

import re

import pytest

from kemi_dmq import settings
from kemi_dmq.gossip import parse_head, rumour_of
from kemi_dmq.swim import TRANSITIONS, Cause, State
from kemi_dmq.wire import parse_body
from tools import membership_page

TEXT = membership_page.PAGE.read_text()
README = (membership_page.ROOT / "README.md").read_text()
SWIM_SETTINGS = (
    "probe_interval",
    "probe_timeout",
    "indirect_checks",
    "suspicion_mult",
    "suspicion_max_timeout_mult",
    "awareness_max_multiplier",
    "gossip_interval",
    "gossip_nodes",
    "retransmit_mult",
    "reconnect_timeout",
)


def test_the_page_shows_the_code_as_it_is() -> None:
    assert membership_page.page(TEXT) == TEXT, "python -m tools.membership_page writes it anew"


def test_a_page_that_shows_another_table_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRANSITIONS, (State.ALIVE, Cause.EXPIRED), State.DOWN)
    assert membership_page.page(TEXT) != TEXT


def test_each_transition_is_in_the_diagram_and_in_the_table() -> None:
    shown = membership_page.states()
    assert shown.count("\n| ") == len(TRANSITIONS) + 1
    arrows = re.findall(r"^    (\w+) --> (\w+): (.*)$", shown, re.MULTILINE)
    found = {(old, cause): new for old, new, causes in arrows for cause in causes.split(", ")}
    names = {(s.value, membership_page.short(c)): new.value for (s, c), new in TRANSITIONS.items()}
    assert found == names


def test_a_part_without_its_marks_is_named() -> None:
    with pytest.raises(ValueError, match="states"):
        membership_page.page(TEXT.replace("<!-- end of states -->", ""))


@pytest.mark.parametrize("name", SWIM_SETTINGS)
def test_page_and_readme_give_each_setting_with_its_default(name: str) -> None:
    default = settings.Settings.__dataclass_fields__[name].default
    for text in (TEXT, README):
        rows = re.findall(rf"^\| `{name}` \| (\S+) \|", text, re.MULTILINE)
        assert rows == [f"{default}"]


def test_the_lines_that_the_page_shows_are_what_nodes_say() -> None:
    body = TEXT.partition("<!-- a message -->\n")[2].partition("\n\n")[0]
    lines, bad = parse_body("\n".join(line.strip() for line in body.splitlines()))
    assert bad == 0
    sender, suspect = lines
    assert parse_head(sender).digest is not None
    assert rumour_of(suspect) == ("suspect", frozenset({"8501", "f7af"}))

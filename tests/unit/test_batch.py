from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kemi_dmq.batch import (
    FINE,
    MAX_ANSWERS,
    MAX_MESSAGES,
    BatchError,
    Item,
    ItemAnswer,
    Piece,
    pack,
    pack_answers,
    unpack,
    unpack_answers,
)

names = st.from_regex(r"[A-Za-z0-9._=-]{1,12}", fullmatch=True)
types = st.from_regex(r"[ -~]{0,20}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
items = st.builds(Item, names, st.integers(0, 255), types, texts)
reasons = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), min_size=1)
answers = st.just(FINE) | st.builds(ItemAnswer, st.integers(200, 699), reasons, texts, types)


@given(st.lists(items, min_size=1, max_size=12))
def test_a_batch_holds_any_messages(messages: list[Item]) -> None:
    pieces = [Piece(message) for message in messages]
    text = pack(pieces)
    assert unpack(text) == messages
    size = 0
    for piece, before in zip(pieces, [None, *pieces], strict=False):
        same = before is not None and before.head == piece.head
        size += piece.same_size if same else piece.first_size
    assert len(text.encode()) == size


@given(st.lists(answers, min_size=1, max_size=12))
def test_each_message_has_its_answer(given_: list[ItemAnswer]) -> None:
    text = pack_answers(given_)
    if text:
        assert unpack_answers(text, len(given_)) == given_
    assert (text == "") is all(answer == FINE for answer in given_)


def test_the_format_is_the_documented_one() -> None:
    messages = [
        Item("chat", 1, "text/plain", "hällo"),
        Item("chat", 1, "text/plain", "a\nb"),
        Item("log", 1, "text/plain", ""),
    ]
    assert pack(map(Piece, messages)) == "chat 1 6 text/plain\nhällo:3\na\nblog 1 0 text/plain\n"
    replies = [FINE, ItemAnswer(404, "User Not Found", "", ""), ItemAnswer(200, "OK", "x", "a/b")]
    assert pack_answers(replies) == "1 404 0\t\tUser Not Found\n2 200 1\ta/b\tOK\nx"


def test_answers_that_are_too_large_lose_their_bodies_not_their_codes() -> None:
    large = ItemAnswer(299, "Large", "x" * (MAX_ANSWERS - 10), "text/plain")
    told = unpack_answers(pack_answers([large, large]), 2)
    assert told == [large, large._replace(body="")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no line",
        ":3\nabc",
        "chat 1 3 text/plain",
        "chat 1 4 text/plain\nabc",
        "chat 1 -3 text/plain\nabc",
        "chat 1 ٣ text/plain\nabc",
        "chat 1 99999999 text/plain\nabc",
        "chat 1\nabc",
        " 1 3 text/plain\nabc",
        "chat 1 1 text/plain\nä",
        "chat 1 0 a\n" * (MAX_MESSAGES + 1),
        "chat 1 3 text/plain\nabcrest",
    ],
)
def test_what_is_no_batch_is_refused_whole(text: str) -> None:
    with pytest.raises(BatchError):
        unpack(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "0 200\t\tOK\n",
        "3 200 0\t\tOK\n",
        "0 100 0\t\tTrying\n",
        "0 200 5\ta\tOK\nabc",
        "0 200 0\n",
    ],
)
def test_what_answers_no_batch_is_refused(text: str) -> None:
    with pytest.raises(BatchError):
        unpack_answers(text, 3)


@given(st.text(max_size=60) | st.text(" :0123456789\nchat/\t", max_size=60), st.integers(0, 3))
def test_any_text_is_read_or_refused(text: str, count: int) -> None:
    for read in (lambda: unpack(text), lambda: unpack_answers(text, count)):
        try:
            read()
        except BatchError:
            pass

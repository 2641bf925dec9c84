"""Exchanges are numbered, recorded and closed in one place for all stars."""

from collections.abc import Callable, Iterator

import pytest
import torch

from privtrain.core.errors import PartyLostError, ProtocolError
from privtrain.core.runtime import Reply
from privtrain.core.transcript import Entry
from privtrain.runtimes.exchanges import Exchanges, replies_and_lost, tolerated
from tests.contracts.star_runtime import PARTIES, a_setting

ONE = torch.ones(1)


class Watched(list[Entry]):
    """Entries that count how often somebody goes through them."""

    passes = 0

    def __iter__(self) -> Iterator[Entry]:
        type(self).passes += 1
        return super().__iter__()


def test_an_exchange_costs_no_pass_over_earlier_ones() -> None:
    setting = a_setting()
    setting.transcript.entries = Watched()
    exchanges, counted = Exchanges(setting), []
    for _ in range(50):
        number = exchanges.begin({name: {} for name in PARTIES}, None, 0)
        for name in PARTIES:
            exchanges.ask(name, {"x": ONE}, number)
        replies = {name: Reply({"x": ONE}, {PARTIES[0]: {"y": ONE}}) for name in PARTIES}
        for name, reply in replies.items():
            exchanges.answer(name, reply, number)
        exchanges.end(replies, {}, len(PARTIES), None, 0)
        counted.append(Watched.passes)
    assert counted[-1] == 0
    assert len(setting.transcript.entries) == 50 * 9


def test_mail_of_an_exchange_that_failed_is_not_handed_over() -> None:
    exchanges = Exchanges(a_setting())
    exchanges.begin({PARTIES[0]: {}, PARTIES[1]: {}}, 2, 0)
    replies = {PARTIES[0]: Reply({}, {PARTIES[2]: {"y": ONE}})}
    lost = {PARTIES[1]: PartyLostError("gone", PARTIES[1])}
    with pytest.raises(PartyLostError, match=f"1 of 2 .* at least 2 have to: {PARTIES[1]} did not"):
        exchanges.end(replies, lost, 2, 2, 0)
    assert exchanges.ask(PARTIES[2], {}, 1) == {}


def test_an_exchange_that_failed_leaves_the_mail_as_it_was() -> None:
    exchanges, (a, b, c) = Exchanges(a_setting()), PARTIES
    exchanges.begin({a: {}, b: {}}, None, 0)
    first = {name: Reply({}, {c: {"x": ONE}}) for name in (a, b)}
    exchanges.end(first, {}, 2, None, 0)
    again = {c: Reply({}, {a: {"y": ONE}}), a: Reply({}, {b: {"z": ONE}, c: {"y": ONE}})}
    # Once c has replied in the same exchange, what waited for it was handed over.
    clash = {a: Reply({}, {c: {"y": ONE, "x": ONE}})}
    with pytest.raises(ProtocolError, match=f"{a} mails 'x' to {c} twice in round 0"):
        exchanges.end(clash, {}, 1, None, 0)
    assert exchanges.ask(c, {}, 1) == {a: {"x": ONE}, b: {"x": ONE}}
    exchanges.end(again, {}, 2, None, 0)
    assert exchanges.ask(c, {}, 2) == {a: {"y": ONE}}
    assert exchanges.ask(b, {}, 2) == {a: {"z": ONE}}


def test_replies_hold_only_the_mail_that_leaves_the_star() -> None:
    exchanges, (a, b, _) = Exchanges(a_setting()), PARTIES
    both = Reply({"x": ONE}, {b: {"y": ONE}, "computing-1": {"z": ONE}})
    plain = Reply({"x": ONE}, {"computing-0": {"z": ONE}})
    replies = exchanges.end({a: both, b: plain}, {}, 2, None, 0)
    assert replies[a] == Reply({"x": ONE}, {"computing-1": {"z": ONE}})
    assert replies[b] is plain


def test_mail_to_nobody_names_its_sender() -> None:
    exchanges = Exchanges(a_setting())
    for name in ("nobody", "dealer", "public", "computing-x"):
        with pytest.raises(ProtocolError, match=f"client-0 mails .*'y'.* to '{name}'"):
            exchanges.answer(PARTIES[0], Reply({}, {name: {"y": ONE}}), 0)


def test_only_who_is_gone_is_tolerated_and_only_where_not_all_have_to_reply() -> None:
    assert tolerated(PartyLostError("gone"), 0)
    assert not tolerated(PartyLostError("gone"), None)
    assert not tolerated(PartyLostError("raised", failed=True), 1)


def test_replies_and_lost_come_in_the_order_of_the_calls() -> None:
    def gone(failed: bool = False) -> Reply:
        raise PartyLostError("gone", failed=failed)

    one, other = Reply({}), Reply({})
    calls: dict[str, Callable[[], Reply]] = {"b": lambda: one, "c": gone, "a": lambda: other}
    replies, lost = replies_and_lost(calls, 2)
    assert list(replies.items()) == [("b", one), ("a", other)]
    assert list(lost) == ["c"]
    # All have to reply, or a party's own code failed.
    for called, at_least in ((calls, None), ({**calls, "c": lambda: gone(failed=True)}, 0)):
        with pytest.raises(PartyLostError, match="gone"):
            replies_and_lost(called, at_least)

"""Messages reach every channel of their tier, or the call says which did not take it; passwords stay secret."""

from __future__ import annotations

import pytest

from pipeline.channels import Channels
from pipeline.errors import InvalidRequest, NotDelivered


def test_a_message_goes_to_every_channel_of_its_tier_and_to_no_other(mailbox):
    channels = Channels({"page": f"{mailbox.url}/a {mailbox.url}/b", "ticket": f"{mailbox.url}/c"})
    assert channels.send("page", "It is so", "because\nof that") == 2
    assert sorted(path for path, _ in mailbox.received) == ["/a", "/b"]
    assert {(post["title"], post["message"]) for _, post in mailbox.received} == {("It is so", "because\nof that")}


def test_a_tier_without_channels_is_told_to_nobody_and_logged(mailbox, caplog):
    with caplog.at_level("INFO", logger="pipeline.channels"):
        assert Channels({"page": mailbox.url, "ticket": " "}).send("ticket", "It is so", "") == 0
    assert caplog.messages == ["nobody is told (PIPELINE_NOTIFY_TICKET is not set): It is so"]
    assert mailbox.received == []


def test_a_channel_that_refuses_is_named_without_its_secrets_and_the_others_are_served(mailbox):
    mailbox.refused.add("/broken")
    secret = mailbox.url.replace("json://", "json://me:topsecret@")
    channels = Channels({"page": f"{secret}/broken {mailbox.url}/fine"})
    with pytest.raises(NotDelivered, match="not told to 1 of 2 channels of tier 'page': It is so") as caught:
        channels.send("page", "It is so", "because")
    assert "no delivery by json" in str(caught.value)
    assert "topsecret" not in str(caught.value)
    assert ("/fine", "because") in [(path, post["message"]) for path, post in mailbox.received]


@pytest.mark.parametrize("url", ["topsecret", "carrierpigeon://me:topsecret@loft", "json://"])
def test_a_url_that_is_not_understood_is_refused_before_anything_is_sent(url):
    with pytest.raises(InvalidRequest, match="a channel in PIPELINE_NOTIFY_TICKET is not understood") as caught:
        Channels({"ticket": url})
    assert "topsecret" not in str(caught.value)

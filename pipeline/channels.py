"""The channels by which people are told of incidents: mail, chat, pagers and webhooks, through Apprise.

Must not know what a message is about, and never shows a channel's URL, which may hold a password.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from apprise import Apprise

from pipeline.errors import InvalidRequest, NotDelivered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.verdicts import Tier

_LOG = logging.getLogger(__name__)


class Channels:
    """Who is told, by tier: whitespace-separated Apprise URLs, such as ``mailto://``, ``slack://`` or ``jsons://``.

    Raises `InvalidRequest` for a URL that Apprise does not understand.
    """

    def __init__(self, urls: Mapping[Tier, str]) -> None:
        self._services = {tier: [_service(tier, url) for url in text.split()] for tier, text in urls.items()}

    def send(self, tier: Tier, title: str, body: str) -> int:
        """Send a message to every channel of the tier; returns how many there are, all of which took it.

        Raises `NotDelivered` when one did not; the others have the message then, and get it again when it is repeated.
        """
        services = self._services.get(tier, [])
        failed = [name for name, service in services if not service.notify(body=body, title=title)]
        if failed:
            raise NotDelivered(
                f"not told to {len(failed)} of {len(services)} channels of tier {tier!r}: {title}",
                expected="every channel to take the message",
                got=f"no delivery by {', '.join(failed)}",
                left_behind="the incident is recorded; the other channels have the message",
                next_step=f"see that PIPELINE_NOTIFY_{tier.upper()} is right and its services answer; the task tries again",
            )
        if not services:
            _LOG.info("nobody is told (PIPELINE_NOTIFY_%s is not set): %s", tier.upper(), title)
        return len(services)


def _service(tier: str, url: str) -> tuple[str, Apprise]:
    service = Apprise()
    scheme = url.partition(":")[0] if "://" in url else "an unknown scheme"
    if not service.add(url):
        raise InvalidRequest(
            f"a channel in PIPELINE_NOTIFY_{tier.upper()} is not understood",
            expected="Apprise URLs, separated by spaces, such as mailto://user:password@example.org",
            got=f"a URL of {scheme}",
            left_behind="nobody was told; incidents stay recorded",
            next_step="correct the variable where the deployment keeps its secrets",
        )
    return scheme, service

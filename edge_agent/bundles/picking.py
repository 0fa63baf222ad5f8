"""Which of the bundles that gateways offer a device takes by itself. Pure.

    the offer                                                   taken
    given up here before, or on the shelf and wanted            no
    refused before, and nothing has changed since               no: counted, and neither fetched nor told again
    its number is below one that was proven here                no
    not above that, while the device was made to go back        no: what an operator did is not undone by the next poll
    what the device was made to go back to                      yes, whatever its number
    else                                                        the one with the highest number

A gateway's word on a number decides only what is not fetched: what is fetched is judged by its signature.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from edge_agent.bundles.record import Record
from protocol import messages as m
from protocol.signing import Trust

MOST_REFUSED = 64


class Picking:
    """For one thread."""

    def __init__(self) -> None:
        self.passed_over = 0  # offers that were refused before and are offered again
        self._refused: OrderedDict[str, object] = OrderedDict()  # by digest: what it was judged by

    def pick(self, offers: Iterable[m.Offer], record: Record, trust: Trust) -> m.Offer | None:
        """`trust` is what is held against bundles that came over the air."""
        fresh = [offer for offer in offers if self._is_fresh(offer, record, trust)]
        return max(fresh, key=lambda offer: offer.counter, default=None)

    def refused(self, offer: m.Offer, trust: Trust) -> None:
        """It was fetched, or as much of it as it took, and `trust` did not believe it."""
        self._refused[offer.bundle.hex()] = _grounds(offer, trust)
        while len(self._refused) > MOST_REFUSED:
            self._refused.popitem(last=False)

    def _is_fresh(self, offer: m.Offer, record: Record, trust: Trust) -> bool:
        digest = offer.bundle.hex()
        if record.why_bad(digest) is not None or digest in record.wanted:
            return False
        if self._refused.get(digest) == _grounds(offer, trust):
            self.passed_over += 1
            return False
        if offer.signature is None or digest == record.back_to:
            return True
        floor = trust.floors.get(offer.model, 0)
        return offer.counter > floor if record.back_to else offer.counter >= floor


def _grounds(offer: m.Offer, trust: Trust) -> object:
    """Whatever the verdict rests on: another signature, key, policy, or list of revocations may change it."""
    known = tuple(key.data for key in trust.keys)
    return offer.signature, offer.counter, known, trust.threshold, trust.allow_unsigned, trust.revocations

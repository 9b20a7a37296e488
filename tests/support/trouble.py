"""What can go wrong with a Hub and passes by itself, at random: for the kills and for the simulation."""

from __future__ import annotations

import random
from collections import Counter

from support.loopback_hub import LoopbackHub

# (action, where and how often)
FAULTS: list[tuple[str, dict[str, object]]] = [
    ("500", {"times": 2}),
    ("503", {"times": 3}),
    ("429(1)", {"times": 2}),
    ("409", {"times": 2}),
    ("412", {"times": 2}),
    ("storage_limit", {}),
    ("lose_commit_500", {}),
    ("drop_before", {"times": 2}),
    ("drop_reply", {"times": 2}),
    ("drop_reply", {"method": "POST", "path": "/commit/"}),
    ("latency(0.3)", {"times": 20}),
    ("slow_upload(20000)", {"times": 6}),
    ("stall_headers(3)", {}),
    ("stall_body(3)", {}),
    ("stall_cas(3)", {"times": 2}),
    ("corrupt_download", {}),
    ("should_ignore(optimizer)", {"times": 1}),
    ("move_head", {}),
    ("lag_heads(2)", {"times": 40}),
]


def disturb(hub: LoopbackHub, chance: random.Random, most: int) -> None:
    """Add one or two faults, each from one of the next `most` requests on."""
    for action, where in chance.sample(FAULTS, chance.choice([1, 1, 2])):
        hub.faults.add(action, after=chance.randrange(most), **where)


def hits(hub: LoopbackHub) -> Counter[str]:
    """How often each fault has hit since the last call; the script is empty then."""
    told = hub.faults.told()
    hub.faults.clear()
    counted: Counter[str] = Counter()
    for fault in told:
        if fault["hits"] and fault["action"] != "call":
            counted[str(int(fault["arguments"].get("status", 0)) or fault["action"])] += fault["hits"]
    return counted

"""Facts about a host that its name or address alone tells."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether it is a loopback address: no proxy can reach it, and no network carries the traffic."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")

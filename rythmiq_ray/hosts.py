"""What is known of a host by its name or address alone."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether it is this machine's own; no proxy has a way there, and nobody listens on the way."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")

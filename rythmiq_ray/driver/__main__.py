"""``python -m rythmiq_ray.driver [--drain] [key=value …]``."""

from __future__ import annotations

from rythmiq_ray.driver.signals import Signals

if __name__ == "__main__":
    signals = Signals()
    signals.install()  # Before the next import, which takes half a second.
    from rythmiq_ray.machine import ensure_home

    ensure_home()
    from rythmiq_ray.driver.lifecycle import live

    live(signals)

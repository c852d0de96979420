"""What of the cluster needs no Ray that runs; the rest is in tests/cluster."""

from __future__ import annotations

import threading

import pytest

from rythmiq_ray.cluster import _quieten_rays_threads


def test_once_it_leaves_rays_threads_end_without_a_word_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.thread.name))
    _quieten_rays_threads()
    for name in ("ray_listen_error_messages", "rythmiq-lease"):
        thread = threading.Thread(target=lambda: 1 / 0, name=name)
        thread.start()
        thread.join()
    assert told == ["rythmiq-lease"]

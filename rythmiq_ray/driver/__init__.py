"""The driver: one process that moves jobs from Postgres through Ray tasks to the backend and the artifact store.

``python -m rythmiq_ray.driver`` starts it (:mod:`~rythmiq_ray.driver.lifecycle`). Read :mod:`~rythmiq_ray.driver.loop`
first: it takes a job through all its phases. :mod:`~rythmiq_ray.driver.attempts` is the state machine of an attempt,
:mod:`~rythmiq_ray.driver.lease` the right to act on it, :mod:`~rythmiq_ray.driver.poller` the thread that reads the
remote list, :mod:`~rythmiq_ray.driver.completer` the outcomes that still have to be written, and
:mod:`~rythmiq_ray.driver.outages` how an outage pauses work.
"""

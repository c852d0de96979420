"""The driver: one process that moves jobs from Postgres through Ray tasks to Camber and the artifact store.

``python -m rythmiq_ray.driver`` starts it (:mod:`~rythmiq_ray.driver.life`). Read :mod:`~rythmiq_ray.driver.loop`
first: it is the way of a job. :mod:`~rythmiq_ray.driver.flights` holds what each result means for an attempt,
:mod:`~rythmiq_ray.driver.watcher` the thread that looks at the remote list, :mod:`~rythmiq_ray.driver.outbox` what is
still to be written, :mod:`~rythmiq_ray.driver.breaker` how an outage pauses work.
"""

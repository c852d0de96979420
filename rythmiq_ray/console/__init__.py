"""What the web console and ``rythmiq top`` share: connections, filters, actions, a job's log, formatting."""

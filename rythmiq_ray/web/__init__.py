"""The console, ``rythmiq web``, and the report: pages rendered on the server, without a build step."""

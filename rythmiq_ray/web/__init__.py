"""The console, ``rythmiq web``, and the report: pages that are made on this side, and no build step."""

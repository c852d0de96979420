"""One ``NNNN_name.sql`` a version, run by the ``.py`` of the same name that Alembic orders."""

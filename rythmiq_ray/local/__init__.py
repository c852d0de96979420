"""The embedded default: a Postgres, an S3 and a Camber emulator from wheels, all on this machine, all real."""

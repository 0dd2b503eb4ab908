"""The finished runs that the tests of `use` open are exported here."""

from tests.use.conftest import pipeline, with_umask

__all__ = ["pipeline", "with_umask"]

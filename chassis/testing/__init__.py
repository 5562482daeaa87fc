"""What tests of every service share; nothing shipped imports it."""

from chassis.testing.time import FakeClock, eventually

__all__ = ["FakeClock", "eventually"]

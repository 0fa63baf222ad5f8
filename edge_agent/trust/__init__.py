"""Whom the device believes, and how it becomes known: bundle keys, anti-rollback counters, enrolment at a gateway."""

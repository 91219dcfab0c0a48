"""Checks that every adapter passes, on a tiny model of its family."""

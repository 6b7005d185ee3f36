"""Bounded reads of a bucket: what to read, how to run it, how far it is."""

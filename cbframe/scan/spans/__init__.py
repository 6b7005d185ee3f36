"""Bounded reads of changes between two offsets, for engines that have others read, and log where they are."""

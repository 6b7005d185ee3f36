"""Bounded reads: from a connection string to a table or a DataFrame."""

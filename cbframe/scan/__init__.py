"""Bounded reads and change streams: from a connection string to a table, a DataFrame or record batches."""

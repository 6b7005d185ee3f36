"""Parquet copies of a bucket that update, survive crashes, and take back what was rolled back."""

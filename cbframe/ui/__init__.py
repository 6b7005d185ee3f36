"""What a reader of a bucket sees while it is read."""

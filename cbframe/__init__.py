"""Read a Couchbase bucket over DCP into Arrow and pandas."""

"""From blocks of the wire to Arrow: record batches, batching, JSON values to typed columns."""

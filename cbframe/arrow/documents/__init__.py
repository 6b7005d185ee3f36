"""JSON documents to typed columns: one schema over all of them, exact to the digit."""

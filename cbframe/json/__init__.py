"""JSON documents as typed columns: the rules, and (later) the code that applies them."""

"""Other libraries' formats and tables: each module needs one optional library."""

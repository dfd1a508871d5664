"""Every SQL statement of the product, one file a table. Functions take a session; callers own the transaction."""

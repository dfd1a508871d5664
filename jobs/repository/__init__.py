"""Every SQL statement of the product, one file per table. Functions take a session; callers own the transaction."""

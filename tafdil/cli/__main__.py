"""`python -m tafdil.cli`."""

from tafdil.cli import app

app()

"""Modules that bear the interfaces of others: an import line is all that changes."""

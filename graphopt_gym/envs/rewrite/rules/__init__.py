"""Rewrite rules: their table, the patterns they are made of, where they match, that they are right."""

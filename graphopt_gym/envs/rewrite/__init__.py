"""RewriteOrder: optimising tensor programs by rewrite rules."""

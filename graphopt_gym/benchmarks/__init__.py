"""What `graphopt bench` measures: each function returns a table {"title", "columns", "rows", "notes"}."""

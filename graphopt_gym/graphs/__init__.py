"""Computation graphs: the data structure, its file format, capture, import, the zoo, generators."""

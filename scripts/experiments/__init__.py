"""The experiments: a declarative file each, ``NAME.py``, with the template of its page, ``NAME.md``, beside it.

    graphopt reproduce                         # which there are
    graphopt reproduce placement               # the runs that are missing, then the tables; can be interrupted
    graphopt reproduce placement --workers 8   # side by side; or ray, or the address of a Ray cluster
    graphopt reproduce placement --tables      # only the tables, of what is there or else of the stored runs

A run is one (graph, method, seed) and a file of its own, ``out/NAME/GRAPH/METHOD-SEED.json``; one that is there, of the
same graph, cluster and op times, is not repeated, and several processes may share the work. The runs, with decisions
and curves, and the summary go to ``envs_data``, page and curves to ``docs``.
"""

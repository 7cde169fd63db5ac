"""One training spine: ``run`` (folder, lock, resume, curves, signals) with two trainers of our own, ``one_shot`` (whole
decisions at once) and ``stepwise`` (environments with masks), and ``sb3``, the adapters to Stable-Baselines3."""

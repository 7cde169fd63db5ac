"""``python -m graphopt_gym`` is the ``graphopt`` command."""

from graphopt_gym.cli import main

main()

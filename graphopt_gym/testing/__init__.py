"""The contract of problems and tasks, as checks that anyone can run on their own: like Gymnasium's ``check_env``, but
stricter.

:func:`check_problem` asks a problem for decisions and looks at what it says of them; :func:`check_task` does the same
to a task's environments. A rule that does not hold raises :class:`ContractError`, one line: the rule, what was found,
how to mend it.
"""

from graphopt_gym.testing.contract import ContractError as ContractError
from graphopt_gym.testing.problems import check_problem as check_problem
from graphopt_gym.testing.tasks import check_task as check_task

__all__ = ["ContractError", "check_problem", "check_task"]

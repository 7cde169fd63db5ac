"""``python scripts/experiments`` is ``graphopt reproduce`` from a checkout that need not be installed."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT), str(ROOT / "agents")]

from graphopt_gym.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.argv.insert(1, "reproduce")
    main()

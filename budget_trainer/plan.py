"""`python -m budget_trainer.plan`: what a budget will buy on this machine. The code is in `planning`."""

import sys

from budget_trainer.planning.command import main

if __name__ == "__main__":
    sys.exit(main())

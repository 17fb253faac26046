"""`python -m budget_trainer.publish`: put a run or a model on the Hub. The code is in `reporting.publish`."""

import sys

from budget_trainer.reporting.publish import main

if __name__ == "__main__":
    sys.exit(main())

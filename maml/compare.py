"""Prints runs beside one another, tested on the same tasks.

python -m maml.compare logs/maml logs/anil
python -m maml.compare logs --tasks=1000 --figure=curves.png
"""

import sys

if __name__ == "__main__":
    from maml.terminal import quiet_stderr

    with quiet_stderr():
        from maml.comparison import main

    sys.exit(main())

"""Prints runs beside one another, tested on the same tasks.

python -m maml.compare logs/maml logs/anil
python -m maml.compare logs --tasks=1000 --figure=curves.png
"""

import argparse
import sys

from maml.errors import UserError


def main() -> int:
    """Prints the table; bad input ends with one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m maml.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("logdirs", nargs="+", help="folders of runs, or of folders of runs")
    parser.add_argument("--tasks", type=int, default=600, help="of the test set")
    parser.add_argument("--seed", type=int, default=0, help="of the tasks")
    parser.add_argument("--test_checkpoint", choices=("latest", "best"), default="latest")
    parser.add_argument("--data_dir", default="", help="where the images are, if they moved")
    parser.add_argument("--figure", default="", help="draw the validation curves into this file")
    args = parser.parse_args()
    from maml.comparison import compare  # TensorFlow

    flags = {"test_checkpoint": args.test_checkpoint} | ({"data_dir": args.data_dir} if args.data_dir else {})
    try:
        found = compare(args.logdirs, args.tasks, seed=args.seed, **flags)
        print(found)
        if args.figure:
            found.figure(args.figure)
            print(f"Drawn: {args.figure}")
    except UserError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

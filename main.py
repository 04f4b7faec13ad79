"""Meta-trains and meta-tests MAML and other algorithms; `maml/program.py` says how."""

from maml.program import start

if __name__ == "__main__":
    start()

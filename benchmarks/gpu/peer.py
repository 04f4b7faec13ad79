"""The update of `benchmarks/peer_jax.py` on the inputs of an exported one, where neither TensorFlow nor `maml` is.

python peer.py omniglot_5w1s.npz --lock=lock
"""

import argparse
import json
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
from run import alone, numbered

RUNS, UPDATES = 5, 30


def stand_in(constants: dict[str, float]) -> None:
    """Modules with the few constants that peer_jax imports."""
    for name in ("maml", "maml.algorithms", "maml.models", "maml.config", "maml.algorithms.adam"):
        sys.modules[name] = types.ModuleType(name)
    for name in ("maml.algorithms.adam", "maml.algorithms.adapting", "maml.models.official", "maml.config"):
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(constants, Config=object, Network=object)


def main() -> None:
    """Measures and prints one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--lock", type=Path, help="see run.py")
    args = parser.parse_args()
    file = np.load(args.file)
    facts = json.loads(str(file["facts"]))
    stand_in(facts["constants"])
    jax.config.update("jax_default_matmul_precision", "highest")
    import peer_jax

    inputs, expected = numbered(file, "in"), float(numbered(file, "out")[-1])
    weights = dict(zip(facts["weights"], inputs, strict=False))
    config, network = (types.SimpleNamespace(**facts[name]) for name in ("config", "network"))
    begin = time.perf_counter()
    run = peer_jax.make_run(config, network, weights, inputs[-4:], vmap=True)
    loss, compiled, times = run(1), time.perf_counter() - begin, []
    with alone(args.lock):
        run(3)
        for _ in range(RUNS):
            begin = time.perf_counter()
            run(UPDATES)
            times.append(1000 * (time.perf_counter() - begin) / UPDATES)
    low, middle, high = np.quantile(times, [0.25, 0.5, 0.75])
    print(
        f"{args.file.stem}, JAX: compiled in {compiled:.1f} s, {middle:.3f} ms an update ({low:.3f} to {high:.3f}), "
        f"relative error of the loss {abs(loss / expected - 1):.1e}"
    )


if __name__ == "__main__":
    main()

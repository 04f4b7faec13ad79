"""Makes `plus_plus/*.npz`: what the official MAML++ code computes, run by PyTorch.

  git clone https://github.com/AntreasAntoniou/HowToTrainYourMAMLPytorch official
  git -C official checkout 801d357
  python tests/core/golden/plus_plus.py official tests/core/golden/plus_plus   # needs torch and numpy

Its files `few_shot_learning_system.py` and `meta_neural_network_architectures.py` are used as they are, in float64. The
network is small and its images are random, so that the files are small. Names and layouts are ours: kernels
[height, width, in, out], matrices [in, out], images flat and channels last.
"""

import argparse
import contextlib
import io
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch

SIZE, CLASSES, FILTERS, STEPS, TASKS, QUERIES = 28, 3, 4, 3, 2, 2
EPOCHS, FIRST_ORDER_UNTIL = 4, 0  # of the loss of every step; the last epoch that is first order
CASES = {  # whether the data set's name holds "imagenet", channels, and the epoch
    "first order": ("omniglot", 1, 0),
    "annealed": ("omniglot", 1, 3),
    "last step": ("omniglot", 1, 4),
    "imagenet": ("imagenet", 3, 2),
}


SETTINGS = {
    "batch_size": TASKS,
    "use_cuda": False,
    "seed": 0,
    "num_classes_per_set": CLASSES,
    "task_learning_rate": 0.1,
    "init_inner_loop_learning_rate": 0.1,
    "number_of_training_steps_per_iter": STEPS,
    "number_of_evaluation_steps_per_iter": STEPS,
    "learnable_per_layer_per_step_inner_loop_learning_rate": True,
    "enable_inner_loop_optimizable_bn_params": False,
    "meta_learning_rate": 0.001,
    "min_learning_rate": 1e-5,
    "total_epochs": 8,
    "multi_step_loss_num_epochs": EPOCHS,
    "use_multi_step_loss_optimization": True,
    "second_order": True,
    "first_order_to_second_order_epoch": FIRST_ORDER_UNTIL,
    "norm_layer": "batch_norm",
    "max_pooling": True,
    "per_step_bn_statistics": True,
    "cnn_num_filters": FILTERS,
    "num_stages": 4,
    "cnn_blocks_per_stage": 1,
    "conv_padding": 1,
    "learnable_bn_gamma": True,
    "learnable_bn_beta": True,
}


def official(folder: str, name: str, channels: int):
    """The official learner, with nothing left at its first values."""
    sys.path.insert(0, folder)
    for unused in ("torchvision", "torchvision.transforms"):  # imported there
        sys.modules[unused] = ModuleType(unused)
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
    from few_shot_learning_system import MAMLFewShotClassifier

    settings = SimpleNamespace(dataset_name=name, **SETTINGS)
    with contextlib.redirect_stdout(io.StringIO()):
        learner = MAMLFewShotClassifier((TASKS, channels, SIZE, SIZE), torch.device("cpu"), settings).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in learner.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data += (0.05 if parameter is learner.task_learning_rate else 0.2) * noise
    return learner


def renamed(learner, of_parameter) -> dict[str, np.ndarray]:
    """What belongs to each parameter, by our names and in our layouts."""
    found, adapted = {}, []
    for name, parameter in learner.classifier.named_parameters():
        if not parameter.requires_grad:
            continue
        array = of_parameter(parameter).numpy()
        pieces = name.split(
            "."
        )  # layer_dict, conv0, conv or norm_layer, weight or bias; or layer_dict, linear, weights
        layer = int(pieces[1].removeprefix("conv")) if pieces[1] != "linear" else 4
        bias = pieces[-1] == "bias"
        if "norm_layer" in pieces:
            found[f"model/{layer}/{'beta' if bias else 'gamma'}"] = array
            continue
        if bias:
            ours = f"b{layer + 1}"
        elif layer < 4:
            ours, array = f"conv{layer + 1}", array.transpose(2, 3, 1, 0)
        else:
            ours, array = "w5", array.T
        found[ours] = array
        adapted.append(ours)
    rates = of_parameter(learner.task_learning_rate).numpy()
    return found | {f"alpha/{name}": rates[:, column] for column, name in enumerate(adapted)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("official", help="folder of the official code")
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    options.output.mkdir(exist_ok=True)
    for case, (name, channels, epoch) in CASES.items():
        learner = official(options.official, name, channels)
        rng = np.random.default_rng(2)
        shape = [TASKS, CLASSES, 1 + QUERIES, channels, SIZE, SIZE]
        images = (rng.uniform(size=shape) < 0.3).astype(np.float64) if channels == 1 else rng.normal(size=shape)
        labels = np.broadcast_to(np.arange(CLASSES)[:, None], [TASKS, CLASSES, 1 + QUERIES])
        support, query = torch.tensor(images[:, :, :1]), torch.tensor(images[:, :, 1:])
        of_support, of_query = torch.tensor(labels[:, :, :1].copy()), torch.tensor(labels[:, :, 1:].copy())
        before = renamed(learner, lambda parameter: parameter.detach().clone())
        learner.current_epoch = epoch
        learner.scheduler.step(epoch=epoch)
        losses, _ = learner.train_forward_prop((support, query, of_support, of_query), epoch)
        trained = list(learner.trainable_parameters())
        gradients = dict(zip(trained, torch.autograd.grad(losses["loss"], trained, retain_graph=True), strict=True))
        learner.meta_update(losses["loss"])
        flat = [
            images[:, :, part].transpose(0, 1, 2, 4, 5, 3).reshape(TASKS, -1, SIZE * SIZE * channels)
            for part in (slice(0, 1), slice(1, None))
        ]
        arrays = {
            "inputa": flat[0].astype(np.float32),
            "inputb": flat[1].astype(np.float32),
            "loss": losses["loss"].item(),
            "rate": learner.optimizer.param_groups[0]["lr"],
            **{f"before/{key}": value for key, value in before.items()},
            **{f"gradient/{key}": value for key, value in renamed(learner, gradients.get).items()},
            **{f"after/{key}": value for key, value in renamed(learner, lambda weight: weight.detach()).items()},
        }
        np.savez_compressed(options.output / f"{case.replace(' ', '_')}.npz", **arrays)


if __name__ == "__main__":
    main()

"""The flags: the name, default, help, kind and range of each are defined here and nowhere else.

`maml/algorithms/__init__.py` says which algorithms use which flags.
"""

import dataclasses
from typing import Any

from maml import algorithms

DATASOURCES = ("sinusoid", "omniglot", "miniimagenet", "folder", "own")
NORMS = ("batch_norm", "layer_norm", "None")
BASELINES = ("None", "oracle")
UNSET = -1

LARGEST_INT, LARGEST_FLOAT = 2**31 - 1, 3.4e38  # of int32 and float32
MOST_MINIBATCHES = 10_000
SMALLEST_POOLED = 16  # pixels that four poolings need
MOST_UPDATES = 1000  # inner steps are unrolled: each makes the graph longer


def _flag(
    default: Any,
    help_text: str,
    *,
    choices: tuple[str, ...] = (),
    least: float = -LARGEST_FLOAT,
    most: float = LARGEST_FLOAT,
    no_zero: bool = False,
    label: str = "",
    kind: str = "training",
):
    """A field of `Flags`.

    Args:
        kind: what it belongs to.
            network: to a run; determines which weights exist.
            training: to a run; determines how they are trained.
            watch: to a run, without influence on its weights; it may change when the run is resumed.
            call: to one call of the program; a test does not inherit it from the run.
        choices: the allowed values, if they are few.
        least, most: the smallest and the largest allowed value.
        no_zero: 0 is not allowed, although -1 is.
        label: what a value other than the default adds to the name of a run's folder.
    """
    if isinstance(default, int):
        most = min(most, LARGEST_INT)
    metadata = {
        "help": help_text,
        "choices": choices,
        "least": least,
        "most": most,
        "no_zero": no_zero,
        "label": label,
        "kind": kind,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Flags:
    """Every flag of `main.py`, those of the official code first; `Config` derives the rest.

    A value of -1 (or an empty string) in the fields that allow it means "the official value for this
    data source".
    """

    # Dataset and method.
    algorithm: str = _flag(
        "maml",
        "maml, anil (adapts only the head), metasgd (learns an inner rate for every weight), "
        "maml++, reptile, protonet (prototypical networks), matching (matching networks)",
        choices=algorithms.NAMES,
        kind="network",
    )
    datasource: str = _flag(
        "sinusoid",
        "sinusoid, omniglot, miniimagenet, or folder (your own images); own is for maml.train in Python",
        choices=DATASOURCES,
        kind="network",
    )
    conventions: str = _flag(
        "maml",
        "which official code to follow for the split and rotation of Omniglot, image normalization, the convolutional "
        "network and the scale of the loss: maml, or maml++ (a mean)",
        choices=("maml", "maml++"),
        kind="network",
    )
    num_classes: int = _flag(5, "classes per task (way, the paper's N)", least=1, kind="network")
    loss: str = _flag(
        "official",
        "official: that of the data source; mse, xent or own in runs of maml.train",
        choices=("official", "mse", "xent", "own"),
        kind="network",
    )
    baseline: str = _flag(
        "None",
        "oracle (sinusoid only: the network is given amplitude and phase) or None",
        choices=BASELINES,
        kind="network",
    )

    # Training.
    pretrain_iterations: int = _flag(0, "pre-training iterations, before meta-training", least=0)
    metatrain_iterations: int = _flag(15000, "meta-training iterations", least=0, kind="watch")
    meta_batch_size: int = _flag(25, "tasks per meta-update", least=1)
    meta_lr: float = _flag(
        0.001,
        "learning rate of the meta-update (Adam, the paper's beta)",
        least=0,
    )
    update_batch_size: int = _flag(5, "support examples per class (shot, the paper's K)", least=1)
    update_lr: float = _flag(
        1e-3,
        "inner learning rate (the paper's alpha), on the official loss scale: a sum over classes",
    )
    num_updates: int = _flag(1, "inner gradient steps in training", least=1, most=MOST_UPDATES)

    # Network.
    norm: str = _flag("batch_norm", "batch_norm, layer_norm or None", choices=NORMS, kind="network")
    num_filters: int = _flag(64, "filters per convolution", least=1, kind="network")
    conv: bool = _flag(True, "convolutional network for images; False: fully connected", kind="network")
    max_pool: bool = _flag(False, "max pooling instead of strided convolutions", kind="network")
    stop_grad: bool = _flag(False, "first-order MAML: no second derivatives")

    adapt: str = _flag(
        "all",
        "what the inner loop adapts: all, the head (the last layer) or the body; may differ in a test",
        choices=("all", "head", "body"),
    )
    learn_rates: str = _flag(
        "none",
        "inner rates that are meta-learned: none, one for every weight (Meta-SGD) or one for every tensor and step "
        "(as in MAML++, starting from update_lr)",
        choices=("none", "weight", "step"),
        kind="network",
    )
    per_step_bn: bool = _flag(
        False, "a batch-norm shift and scale for each inner step, both meta-learned (as in MAML++)", kind="network"
    )
    multi_step_loss_num_epochs: int = _flag(
        0,
        "epochs in which the query losses after all inner steps count, the last one more and more (MAML++; 0: only the "
        "last one counts)",
        least=0,
    )
    first_order_to_second_order_epoch: int = _flag(
        -1,
        "the last first-order epoch, followed by second order (MAML++; -1: second order from the start)",
        least=-1,
    )
    total_epochs: int = _flag(
        0, "epochs over which meta_lr decays to min_learning_rate along a cosine (MAML++; 0: constant)", least=0
    )
    min_learning_rate: float = _flag(1e-5, "final meta_lr, with --total_epochs", least=0)
    total_iter_per_epoch: int = _flag(
        500, "meta-training iterations per epoch, for the flags that count epochs", least=1
    )

    # Logging, saving and testing.
    log: bool = _flag(True, "write TensorBoard summaries", kind="call")
    logdir: str = _flag("", "folder of the runs (default logs/<datasource>)", kind="call")
    resume: bool = _flag(True, "resume from the newest checkpoint of this run, if there is one", kind="call")
    train: bool = _flag(True, "True: train; False: test", kind="call")
    test_iter: int = _flag(UNSET, "iteration of the checkpoint to test (-1: the newest)", least=-1, kind="call")
    test_set: bool = _flag(False, "test on the test set; False: on the validation set", kind="call")
    train_update_batch_size: int = _flag(
        UNSET, "update_batch_size of the run to test, if it differs (-1: the same)", least=-1, no_zero=True, kind="call"
    )
    train_update_lr: float = _flag(
        UNSET,
        "update_lr of the run to test, if it differs (-1: the same)",
        least=-1,
        kind="call",
    )

    # Other algorithms.
    train_num_classes: int = _flag(
        UNSET,
        "classes per training task (-1: num_classes for matching; 60 for protonet, on miniImageNet 30 for 1-shot and "
        "20 otherwise)",
        least=-1,
        no_zero=True,
        label="train",
    )
    distance: str = _flag(
        "l2",
        "similarity of two embeddings: minus the squared Euclidean distance (l2), or the cosine",
        choices=("l2", "cosine"),
        label="distance_",
    )
    attention_scale: float = _flag(
        1.0,
        "factor of that similarity in the softmax; the cosine needs more than 1 to separate classes well "
        "(0: learned, starting from 10)",
        least=0,
        label="scale",
    )
    fce: bool = _flag(
        False,
        "full context embeddings: every embedding depends on the whole support set",
        label="fce",
    )
    unrolling_steps: int = _flag(
        5, "steps of the attention LSTM that embeds a query, with --fce", least=1, most=MOST_UPDATES
    )
    halving_interval: int = _flag(0, "iterations between halvings of meta_lr (0: never)", least=0)
    train_shots: int = _flag(
        10,
        "images per class of a training task, instead of update_batch_size",
        least=1,
        label="shots",
    )
    inner_iters: int = _flag(5, "minibatch steps per training task", least=1, most=MOST_MINIBATCHES, label="iters")
    inner_batch: int = _flag(10, "examples per minibatch in training", least=1, most=MOST_MINIBATCHES, label="batch")
    inner_optimizer: str = _flag("adam", "adam (without momentum) or sgd", choices=("adam", "sgd"), label="inner")
    meta_step: float = _flag(
        1.0,
        "how far the first update moves toward the adapted weights (1: all the way)",
        least=0,
        most=1,
    )
    meta_step_final: float = _flag(
        0.0, "final value of meta_step, reached linearly at the end of the training", least=0, most=1
    )
    eval_inner_iters: int = _flag(
        50, "minibatch steps in validation and testing", least=1, most=MOST_MINIBATCHES, kind="watch"
    )
    eval_inner_batch: int = _flag(
        5,
        "examples per minibatch in validation and testing",
        least=1,
        most=MOST_MINIBATCHES,
        kind="watch",
    )

    # Ours.
    check_gradients: bool = _flag(
        False,
        "neither train nor test: check this model's meta-gradient against central differences in float64",
        kind="call",
    )
    predict: bool = _flag(
        False, "neither train nor test: adapt to the images of --support and classify those of --query", kind="call"
    )
    support: str = _flag("", "folder with one folder of support images per class, for --predict", kind="call")
    query: str = _flag("", "folder of the images to classify, for --predict", kind="call")
    predict_csv: str = _flag("", "file that --predict writes its predictions to", kind="call")
    export_dir: str = _flag("", "folder that a test or --predict exports the model to, as a SavedModel", kind="call")
    bn_mode: str = _flag(
        "transductive",
        "batch-norm statistics in a test and in --predict: of the query batch (transductive, the official way) or "
        "of the support set (support)",
        choices=("transductive", "support"),
        kind="call",
    )
    seed: int = _flag(0, "determines weights, episodes, validation and test tasks", least=0)
    data_dir: str = _flag("", "folder of the images (default data/omniglot, data/miniImagenet)", kind="watch")
    image_size: int = _flag(UNSET, "height and width of images in folders (-1: 84)", least=-1, kind="network")
    channels: int = _flag(UNSET, "channels of images in folders, 1 or 3 (-1: 3)", least=-1, kind="network")
    omniglot_resize: str = _flag(
        "nearest",
        "nearest (what the official code gets, see the README) or lanczos",
        choices=("nearest", "lanczos"),
    )
    flip: bool = _flag(False, "mirror training images left to right, each with probability 1/2")
    crop: int = _flag(0, "random crops of training images, after padding with so many black pixels", least=0, most=512)
    rotate_classes: bool = _flag(
        False,
        "rotate each class of a training task by 0, 90, 180 or 270 degrees (Omniglot's always are, also in tests)",
    )
    normalize: str = _flag(
        "",
        "subtract each channel's mean and divide by its standard deviation before the network: auto (those of the "
        "training images), or as mean,.../deviation,... on a scale from 0 to 1",
    )
    query_size: int = _flag(
        UNSET,
        "query examples per class (-1: 15 in training on miniImageNet, 5 in other training tasks of protonet and "
        "matching, otherwise update_batch_size)",
        least=-1,
        no_zero=True,
    )
    test_num_updates: int = _flag(
        UNSET,
        "inner steps in summaries and tests (-1: 10; in training summaries 5 for sinusoid, 1 for miniImageNet)",
        least=-1,
        no_zero=True,
        most=MOST_UPDATES,
        kind="call",
    )
    test_head: str = _flag(
        "trained",
        "how a test and --predict classify: with the adapted head (trained), or without adaptation by the cosine "
        "similarity of the features before it (cosine, NIL)",
        choices=("trained", "cosine"),
        kind="call",
    )
    test_tasks: int = _flag(600, "tasks per test", least=2, kind="call")
    test_checkpoint: str = _flag(
        "latest",
        "checkpoint to test: latest, best (by validation), or ensemble (mean output of the best ones that were kept)",
        choices=("latest", "best", "ensemble"),
        kind="call",
    )
    keep_best: int = _flag(1, "how many of the best checkpoints by validation to keep", least=1, kind="watch")
    val_interval: int = _flag(
        UNSET,
        "iterations between validations (-1: 5000 for sinusoid, 1000 for miniimagenet, else 500)",
        least=-1,
        no_zero=True,
        kind="watch",
    )
    val_tasks: int = _flag(100, "tasks per validation, always the same ones (0: no validation)", least=0, kind="watch")
    save_interval: int = _flag(1000, "iterations between checkpoints", least=1, kind="watch")
    summary_interval: int = _flag(100, "iterations between summaries", least=1, kind="watch")
    on_nan: str = _flag(
        "stop",
        "what to do if the loss or gradient of an update is not finite: stop, or skip and count it",
        choices=("stop", "skip"),
        kind="watch",
    )
    deterministic: bool = _flag(
        False,
        "use only operations that give the same bits every time on the same machine; fail where none exists",
        kind="call",
    )
    histograms: bool = _flag(False, "write histograms of weights and meta-gradients at every validation", kind="call")
    tf32: bool = _flag(False, "let a GPU compute products in TensorFloat-32: faster, less exact", kind="call")
    bfloat16: bool = _flag(False, "convolutions in bfloat16; weights, statistics and gradients stay float32")
    accumulate: int = _flag(
        1,
        "compute the gradients of a meta-batch in so many parts, one after another: larger meta-batches in the same "
        "memory",
        least=1,
        kind="watch",
    )
    demo: bool = _flag(
        False, "open a page to draw on, with the runs in pretrained/ (and the run in --logdir, for images)", kind="call"
    )
    devices: str = _flag(
        "",
        "what the tasks of a batch are divided over: the number of GPUs (empty: all), or cpu:N for N replicas on "
        "the CPU",
        kind="call",
    )
    recompute: bool = _flag(False, "recompute inner steps in the backward pass: less memory, more time", kind="watch")
    dtype: str = _flag(
        "float32", "floating-point type of the whole computation", choices=("float32", "float64"), kind="network"
    )


def names_of(*kinds: str) -> list[str]:
    """The flags of some kinds; see `_flag`."""
    return [field.name for field in dataclasses.fields(Flags) if field.metadata["kind"] in kinds]

"""The flags: each one's name, default, help, kind and range stand here and nowhere else.

Which algorithms use a flag says `maml/algorithms/__init__.py`.
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
        kind: whose it is.
            network: a run's; decides which weights there are.
            training: a run's; decides what becomes of them.
            watch: a run's, and cannot change its weights; it may differ when the run goes on.
            call: of one call of the program; a test does not inherit it from the run.
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
    """Every flag of `main.py`, those of the official one first; `Config` derives the rest.

    A value of -1 (or an empty string) in the fields that allow it means "the official value for this
    data source".
    """

    # Dataset and method.
    algorithm: str = _flag(
        "maml",
        "maml, or another: anil (only the head is adapted), metasgd (an inner rate is learned for every weight), "
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
        "by whose official code Omniglot is split and turned, images are normalized, the convolutional network is "
        "built, and the loss is scaled: maml, or maml++ (a mean)",
        choices=("maml", "maml++"),
        kind="network",
    )
    num_classes: int = _flag(5, "classes of a task (way, the paper's N)", least=1, kind="network")
    loss: str = _flag(
        "official",
        "of the data source; runs of maml.train in Python have mse, xent or their own",
        choices=("official", "mse", "xent", "own"),
        kind="network",
    )
    baseline: str = _flag(
        "None",
        "oracle (sinusoid only: amplitude and phase are given to the network) or None",
        choices=BASELINES,
        kind="network",
    )

    # Training.
    pretrain_iterations: int = _flag(0, "pre-training iterations, before meta-training", least=0)
    metatrain_iterations: int = _flag(15000, "meta-training iterations", least=0, kind="watch")
    meta_batch_size: int = _flag(25, "tasks of a meta-update", least=1)
    meta_lr: float = _flag(
        0.001,
        "learning rate of the meta-update (Adam, the paper's beta)",
        least=0,
    )
    update_batch_size: int = _flag(5, "support examples a class (shot, the paper's K)", least=1)
    update_lr: float = _flag(
        1e-3,
        "inner learning rate (the paper's alpha), on the official loss scale: a sum over classes",
    )
    num_updates: int = _flag(1, "inner gradient updates while training", least=1, most=MOST_UPDATES)

    # Network.
    norm: str = _flag("batch_norm", "batch_norm, layer_norm or None", choices=NORMS, kind="network")
    num_filters: int = _flag(64, "filters of a convolution", least=1, kind="network")
    conv: bool = _flag(True, "convolutional network for images; False: fully connected", kind="network")
    max_pool: bool = _flag(False, "max pooling instead of strided convolutions", kind="network")
    stop_grad: bool = _flag(False, "first-order MAML: no second derivatives")

    adapt: str = _flag(
        "all",
        "what the inner loop adapts: all, the head (the last layer) or the body; a test may have another value",
        choices=("all", "head", "body"),
    )
    learn_rates: str = _flag(
        "none",
        "inner rates that are meta-learned: none, one for every weight (Meta-SGD) or one for every tensor and step "
        "(as in MAML++, from update_lr on)",
        choices=("none", "weight", "step"),
        kind="network",
    )
    per_step_bn: bool = _flag(
        False, "a shift and a scale of batch-norm for each inner step, both meta-learned (as in MAML++)", kind="network"
    )
    multi_step_loss_num_epochs: int = _flag(
        0,
        "epochs in which the query losses after all inner steps count, the last one ever more (MAML++; 0: the last "
        "alone counts)",
        least=0,
    )
    first_order_to_second_order_epoch: int = _flag(
        -1,
        "the last epoch that is first order; second order behind it (MAML++; -1: second order from the start)",
        least=-1,
    )
    total_epochs: int = _flag(
        0, "epochs in which meta_lr falls to min_learning_rate, by a cosine (MAML++; 0: it stays)", least=0
    )
    min_learning_rate: float = _flag(1e-5, "what meta_lr falls to, with --total_epochs", least=0)
    total_iter_per_epoch: int = _flag(
        500, "meta-training iterations of an epoch, in the flags that count epochs", least=1
    )

    # Logging, saving and testing.
    log: bool = _flag(True, "write TensorBoard summaries", kind="call")
    logdir: str = _flag("", "folder of the runs (default logs/<datasource>)", kind="call")
    resume: bool = _flag(True, "go on from the newest checkpoint of this run, if there is one", kind="call")
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
        "classes of a training task (-1: for protonet 60, on miniImageNet 30 in 1-shot and 20 else; for matching "
        "num_classes)",
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
        "factor of that similarity under the softmax; a cosine needs one above 1 to tell classes well apart "
        "(0: learnt, from 10 on)",
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
    halving_interval: int = _flag(0, "iterations after which meta_lr is halved, every time (0: never)", least=0)
    train_shots: int = _flag(
        10,
        "images a class of a training task, in place of update_batch_size",
        least=1,
        label="shots",
    )
    inner_iters: int = _flag(5, "minibatch steps of a training task", least=1, most=MOST_MINIBATCHES, label="iters")
    inner_batch: int = _flag(10, "examples of a minibatch in training", least=1, most=MOST_MINIBATCHES, label="batch")
    inner_optimizer: str = _flag("adam", "adam (without momentum) or sgd", choices=("adam", "sgd"), label="inner")
    meta_step: float = _flag(
        1.0,
        "how far the first update moves towards the adapted weights, 1: all the way",
        least=0,
        most=1,
    )
    meta_step_final: float = _flag(
        0.0, "what meta_step falls to, linearly, by the end of the training", least=0, most=1
    )
    eval_inner_iters: int = _flag(
        50, "minibatch steps in validation and testing", least=1, most=MOST_MINIBATCHES, kind="watch"
    )
    eval_inner_batch: int = _flag(
        5,
        "examples of a minibatch in validation and testing",
        least=1,
        most=MOST_MINIBATCHES,
        kind="watch",
    )

    # Ours.
    check_gradients: bool = _flag(
        False,
        "neither train nor test: compare this model's meta-gradient with central differences in float64",
        kind="call",
    )
    predict: bool = _flag(
        False, "neither train nor test: adapt to the images of --support and classify those of --query", kind="call"
    )
    support: str = _flag("", "folder with a folder of support images for each class, for --predict", kind="call")
    query: str = _flag("", "folder of the images to classify, for --predict", kind="call")
    predict_csv: str = _flag("", "file that --predict writes its predictions to", kind="call")
    export_dir: str = _flag("", "folder that a test or --predict exports the model to, as a SavedModel", kind="call")
    bn_mode: str = _flag(
        "transductive",
        "statistics of batch-norm in a test and in --predict: of the query batch (transductive, the official way) or "
        "of the support set",
        choices=("transductive", "support"),
        kind="call",
    )
    seed: int = _flag(0, "fixes weights, episodes, validation and test tasks", least=0)
    data_dir: str = _flag("", "folder of the images (default data/omniglot, data/miniImagenet)", kind="watch")
    image_size: int = _flag(UNSET, "height and width of the images of a folder (-1: 84)", least=-1, kind="network")
    channels: int = _flag(UNSET, "channels of the images of a folder, 1 or 3 (-1: 3)", least=-1, kind="network")
    omniglot_resize: str = _flag(
        "nearest",
        "nearest (the official result, see the README) or lanczos",
        choices=("nearest", "lanczos"),
    )
    flip: bool = _flag(False, "mirror training images left to right, each with probability 1/2")
    crop: int = _flag(
        0, "cut training images at random out of ones with so many black pixels around them", least=0, most=512
    )
    rotate_classes: bool = _flag(
        False, "turn each class of a training task by 0, 90, 180 or 270 degrees (Omniglot's always are, also in tests)"
    )
    normalize: str = _flag(
        "",
        "subtract each channel's mean and divide by its standard deviation before the network: auto (those of the "
        "training images), or as mean,.../deviation,... on a scale from 0 to 1",
    )
    query_size: int = _flag(
        UNSET,
        "query examples a class (-1: 15 while training on miniImageNet, 5 in other training tasks of protonet and "
        "matching, update_batch_size elsewhere)",
        least=-1,
        no_zero=True,
    )
    test_num_updates: int = _flag(
        UNSET,
        "inner updates in summaries and tests (-1: 10; in summaries of training 5 for sinusoid, 1 for miniImageNet)",
        least=-1,
        no_zero=True,
        most=MOST_UPDATES,
        kind="call",
    )
    test_head: str = _flag(
        "trained",
        "how a test and --predict classify: by the trained head, adapted; or, adapting nothing, by the cosine of the "
        "features before it (cosine, NIL)",
        choices=("trained", "cosine"),
        kind="call",
    )
    test_tasks: int = _flag(600, "tasks of a test", least=2, kind="call")
    test_checkpoint: str = _flag(
        "latest",
        "checkpoint to test: latest, best by validation, or ensemble (the mean output of all best ones that were kept)",
        choices=("latest", "best", "ensemble"),
        kind="call",
    )
    keep_best: int = _flag(1, "how many of the checkpoints that did best in validation are kept", least=1, kind="watch")
    val_interval: int = _flag(
        UNSET,
        "iterations between validations (-1: 5000 for sinusoid, 1000 for miniimagenet, else 500)",
        least=-1,
        no_zero=True,
        kind="watch",
    )
    val_tasks: int = _flag(100, "tasks of a validation, the same ones every time (0: none)", least=0, kind="watch")
    save_interval: int = _flag(1000, "iterations between checkpoints", least=1, kind="watch")
    summary_interval: int = _flag(100, "iterations between summaries", least=1, kind="watch")
    on_nan: str = _flag(
        "stop",
        "what to do about an update whose loss or gradient is not finite: stop, or skip it and count it",
        choices=("stop", "skip"),
        kind="watch",
    )
    deterministic: bool = _flag(
        False,
        "only operations that give the same bits every time on the same machine; an error where there is none",
        kind="call",
    )
    histograms: bool = _flag(False, "write histograms of weights and meta-gradients, at every validation", kind="call")
    tf32: bool = _flag(False, "let a GPU round products to TensorFloat-32: faster, less exact", kind="call")
    bfloat16: bool = _flag(False, "convolutions in bfloat16; weights, statistics and gradients stay float32")
    accumulate: int = _flag(
        1,
        "parts of a meta-batch whose gradients are computed one after another: a larger meta-batch in the same memory",
        least=1,
        kind="watch",
    )
    demo: bool = _flag(
        False, "show a page to draw on, with the runs of pretrained/ (and that of --logdir, for images)", kind="call"
    )
    devices: str = _flag(
        "",
        "over which the tasks of a batch are divided: how many GPUs (empty: all there are), or cpu:N for N replicas on "
        "the processor",
        kind="call",
    )
    recompute: bool = _flag(False, "recompute inner steps in the backward pass: less memory, more time", kind="watch")
    dtype: str = _flag(
        "float32", "floating-point type of the whole computation", choices=("float32", "float64"), kind="network"
    )


def names_of(*kinds: str) -> list[str]:
    """The flags of some kinds; see `_flag`."""
    return [field.name for field in dataclasses.fields(Flags) if field.metadata["kind"] in kinds]

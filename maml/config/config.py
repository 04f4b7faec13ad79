"""One frozen description of a run: every flag, its official meaning and its default.

The fields of `Config` are the flags of `main.py`, so a flag's name, default and help text
stand here and nowhere else.
"""

import dataclasses
import math
from collections.abc import Collection
from typing import Any

from maml.errors import UserError

ALGORITHMS = ("maml", "reptile", "protonet", "matching")
METRIC = ("protonet", "matching")  # they learn an embedding, and adapt nothing
DATASOURCES = ("sinusoid", "omniglot", "miniimagenet", "folder")
NORMS = ("batch_norm", "layer_norm", "None")
BASELINES = ("None", "oracle")
UNSET = -1

# The paper's values for miniImageNet (its section A.1); they stand in for flags that were
# not given, because the official defaults were chosen for the sinusoid.
MINIIMAGENET_DEFAULTS = {
    "max_pool": True,
    "num_filters": 32,
    "update_lr": 0.01,
    "meta_batch_size": 4,
}


# One's own images are learned like miniImageNet's, with as many inner steps as its command gives.
FOLDER_DEFAULTS = {"num_updates": 5}

# Flags that the official name of a run's folder holds, or that are refused rather than named.
OFFICIALLY_NAMED = {
    *("algorithm", "datasource", "num_classes", "meta_batch_size", "update_batch_size", "num_updates", "update_lr"),
    *("num_filters", "max_pool", "stop_grad", "baseline", "norm", "pretrain_iterations"),
}

# What an algorithm's authors used, where it is not the default above; for flags that were not given.
POOLED_64 = {"max_pool": True, "num_filters": 64}
ALGORITHM_DEFAULTS: dict[str, dict[str, Any]] = {
    "maml": {},
    "reptile": {"datasource": "omniglot", "meta_batch_size": 5, "update_lr": 0.001},
    "protonet": {"datasource": "omniglot", "meta_batch_size": 1, "halving_interval": 2000} | POOLED_64,
    "matching": {"datasource": "omniglot", "meta_batch_size": 16, "distance": "cosine"} | POOLED_64,
}

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
    only: tuple[str, ...] = ALGORITHMS,
    label: str = "",
    kind: str = "training",
):
    """A field of `Config`.

    Args:
        kind: whose it is.
            network: a run's; decides which weights there are.
            training: a run's; decides what becomes of them.
            watch: a run's, and cannot change its weights; it may differ when the run goes on.
            call: of one call of the program; a test does not inherit it from the run.
        choices: the allowed values, if they are few.
        least, most: the smallest and the largest allowed value.
        only: the algorithms that use it; the others refuse it.
        label: what a value other than the default adds to the name of a sibling's run folder.
    """
    if isinstance(default, int):
        most = min(most, LARGEST_INT)
    metadata = {
        "help": help_text,
        "choices": choices,
        "least": least,
        "most": most,
        "only": only,
        "label": label,
        "kind": kind,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Config:
    """The whole setting of a run.

    `Config.from_flags` fills in what depends on the data source; the properties below derive
    the rest. A value of -1 (or an empty string) in the fields that allow it means "the
    official value for this data source", which the property of the same purpose returns.

    Source: the flags of the official `main.py`, then ours.
    """

    # Dataset and method.
    algorithm: str = _flag(
        "maml",
        "maml, or a sibling: reptile, protonet (prototypical networks), matching networks",
        choices=ALGORITHMS,
        kind="network",
    )
    datasource: str = _flag(
        "sinusoid", "sinusoid, omniglot, miniimagenet, or folder (your own images)", choices=DATASOURCES, kind="network"
    )
    num_classes: int = _flag(5, "classes of a task (way, the paper's N)", least=1, kind="network")
    baseline: str = _flag(
        "None",
        "oracle (sinusoid only: amplitude and phase are given to the network) or None",
        choices=BASELINES,
        only=("maml",),
        kind="network",
    )

    # Training.
    pretrain_iterations: int = _flag(0, "pre-training iterations, before meta-training", least=0, only=("maml",))
    metatrain_iterations: int = _flag(15000, "meta-training iterations", least=0, kind="watch")
    meta_batch_size: int = _flag(25, "tasks of a meta-update", least=1)
    meta_lr: float = _flag(
        0.001,
        "learning rate of the meta-update (Adam, the paper's beta)",
        least=0,
        only=("maml", *METRIC),
    )
    update_batch_size: int = _flag(5, "support examples a class (shot, the paper's K)", least=1)
    update_lr: float = _flag(
        1e-3,
        "inner learning rate (the paper's alpha), on the official loss scale: a sum over classes",
        only=("maml", "reptile"),
    )
    num_updates: int = _flag(1, "inner gradient updates while training", least=1, most=MOST_UPDATES, only=("maml",))

    # Network.
    norm: str = _flag("batch_norm", "batch_norm, layer_norm or None", choices=NORMS, kind="network")
    num_filters: int = _flag(64, "filters of a convolution", least=1, kind="network")
    conv: bool = _flag(
        True, "convolutional network for images; False: fully connected", only=("maml", "reptile"), kind="network"
    )
    max_pool: bool = _flag(False, "max pooling instead of strided convolutions", kind="network")
    stop_grad: bool = _flag(False, "first-order MAML: no second derivatives", only=("maml",))

    # Logging, saving and testing.
    log: bool = _flag(True, "write TensorBoard summaries", kind="call")
    logdir: str = _flag("", "folder of the runs (default logs/<datasource>)", kind="call")
    resume: bool = _flag(True, "go on from the newest checkpoint of this run, if there is one", kind="call")
    train: bool = _flag(True, "True: train; False: test", kind="call")
    test_iter: int = _flag(UNSET, "iteration of the checkpoint to test (-1: the newest)", least=-1, kind="call")
    test_set: bool = _flag(False, "test on the test set; False: on the validation set", kind="call")
    train_update_batch_size: int = _flag(
        UNSET, "update_batch_size of the run to test, if it differs (-1: the same)", least=-1, kind="call"
    )
    train_update_lr: float = _flag(
        UNSET,
        "update_lr of the run to test, if it differs (-1: the same)",
        least=-1,
        only=("maml", "reptile"),
        kind="call",
    )

    # Siblings.
    train_num_classes: int = _flag(
        UNSET,
        "classes of a training task (-1: for protonet 60, on miniImageNet 30 in 1-shot and 20 else; for matching "
        "num_classes)",
        least=-1,
        only=METRIC,
        label="train",
    )
    distance: str = _flag(
        "l2",
        "how alike two embeddings are: minus the squared Euclidean distance (l2), or the cosine",
        choices=("l2", "cosine"),
        only=METRIC,
        label="distance_",
    )
    attention_scale: float = _flag(
        1.0,
        "factor of that likeness under the softmax; a cosine needs one above 1 to tell classes well apart "
        "(0: learnt, from 10 on)",
        least=0,
        only=METRIC,
        label="scale",
    )
    fce: bool = _flag(
        False,
        "full context embeddings: every embedding depends on the whole support set",
        only=("matching",),
        label="fce",
    )
    unrolling_steps: int = _flag(
        5, "steps of the attention LSTM that embeds a query, with --fce", least=1, most=MOST_UPDATES, only=("matching",)
    )
    halving_interval: int = _flag(
        0, "iterations after which meta_lr is halved, every time (0: never)", least=0, only=METRIC
    )
    train_shots: int = _flag(
        10,
        "images a class of a training task, in place of update_batch_size",
        least=1,
        only=("reptile",),
        label="shots",
    )
    inner_iters: int = _flag(
        5, "minibatch steps of a training task", least=1, most=MOST_MINIBATCHES, only=("reptile",), label="iters"
    )
    inner_batch: int = _flag(
        10, "examples of a minibatch in training", least=1, most=MOST_MINIBATCHES, only=("reptile",), label="batch"
    )
    inner_optimizer: str = _flag(
        "adam", "adam (without momentum) or sgd", choices=("adam", "sgd"), only=("reptile",), label="inner"
    )
    meta_step: float = _flag(
        1.0,
        "how far the first update moves towards the adapted weights, 1: all the way",
        least=0,
        most=1,
        only=("reptile",),
    )
    meta_step_final: float = _flag(
        0.0, "what meta_step falls to, linearly, by the end of the training", least=0, most=1, only=("reptile",)
    )
    eval_inner_iters: int = _flag(
        50, "minibatch steps in validation and testing", least=1, most=MOST_MINIBATCHES, only=("reptile",), kind="watch"
    )
    eval_inner_batch: int = _flag(
        5,
        "examples of a minibatch in validation and testing",
        least=1,
        most=MOST_MINIBATCHES,
        only=("reptile",),
        kind="watch",
    )

    # Ours.
    check_gradients: bool = _flag(
        False,
        "neither train nor test: compare this model's meta-gradient with central differences in float64",
        only=("maml",),
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
    query_size: int = _flag(
        UNSET,
        "query examples a class (-1: 15 while training on miniImageNet, 5 in other training tasks of protonet and "
        "matching, update_batch_size elsewhere)",
        least=-1,
    )
    test_num_updates: int = _flag(
        UNSET,
        "inner updates in summaries and tests (-1: 10; in summaries of training 5 for sinusoid, 1 for miniImageNet)",
        least=-1,
        most=MOST_UPDATES,
        only=("maml",),
        kind="call",
    )
    test_tasks: int = _flag(600, "tasks of a test", least=2, kind="call")
    test_checkpoint: str = _flag(
        "latest", "checkpoint to test: latest, or best by validation", choices=("latest", "best"), kind="call"
    )
    val_interval: int = _flag(
        UNSET,
        "iterations between validations (-1: 5000 for sinusoid, 1000 for miniimagenet, else 500)",
        least=-1,
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
    recompute: bool = _flag(
        False, "recompute inner steps in the backward pass: less memory, more time", only=("maml",), kind="watch"
    )
    dtype: str = _flag(
        "float32", "floating-point type of the whole computation", choices=("float32", "float64"), kind="network"
    )

    @classmethod
    def from_flags(cls, given: dict[str, Any]) -> "Config":
        """The config of the flags that were given; the others take the defaults of algorithm and data source.

        Args:
            given: values by flag name, only those the user set.

        Raises:
            UserError: a value is out of range, or two flags contradict each other.
        """
        algorithm = given.get("algorithm", cls.algorithm)
        defaults = defaults_of(algorithm, given.get("datasource", ""))
        if 0 < given.get("image_size", UNSET) < SMALLEST_POOLED:
            defaults.pop("max_pool", None)  # four poolings would leave nothing
        config = cls(**(defaults | given))
        config.validate(set(given))
        return config

    def validate(self, given: Collection[str] = ()) -> None:
        """Raises UserError with one line if a flag is out of range, contradicts another, or has no use.

        Args:
            given: names of flags that have a use, or should not have been given, even at their default.
        """
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), field.metadata["choices"]
            least, most = field.metadata["least"], field.metadata["most"]
            if choices and value not in choices:
                raise UserError(f"--{field.name}={value}: must be one of {', '.join(choices)}")
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"--{field.name}={value}: must be a finite number")
            if isinstance(value, int | float) and value < least:
                raise UserError(f"--{field.name}={value}: must be at least {least}")
            if isinstance(value, int | float) and value > most:
                raise UserError(f"--{field.name}={value}: must be at most {most}")
            if not self.uses(field.name) and (field.name in given or value != field.default):
                raise UserError(
                    f"--{field.name} has no meaning with --algorithm={self.algorithm}; it is for "
                    f"{' and '.join(users(field.name))}: leave it out, or choose that --algorithm"
                )
        if self.algorithm != "maml" and not self.classification:
            raise UserError(f"--algorithm={self.algorithm} is for images; choose a --datasource other than sinusoid")
        for name in ("query_size", "train_num_classes", "test_num_updates", "val_interval", "train_update_batch_size"):
            if getattr(self, name) == 0:
                raise UserError(f"--{name}=0: must be at least 1, or -1 for the default")
        if self.datasource == "sinusoid":
            if self.max_pool or self.num_filters != Config.num_filters:
                raise UserError("--max_pool and --num_filters are for images; the sinusoid network has none")
        elif self.baseline != "None":
            raise UserError(f"--baseline={self.baseline} is for --datasource=sinusoid only")
        elif self.omniglot_resize != "nearest" and self.datasource != "omniglot":
            raise UserError("--omniglot_resize is for --datasource=omniglot only")
        elif self.num_classes < 2:
            raise UserError("--num_classes=1: classification needs at least 2 classes")
        if self.datasource != "folder" and (self.image_size, self.channels) != (UNSET, UNSET):
            raise UserError("--image_size and --channels are for --datasource=folder only")
        if self.bfloat16 and not (self.convolutional and self.dtype == "float32"):
            raise UserError("--bfloat16 is for convolutional networks in float32 only")
        if self.channels not in (UNSET, 1, 3):
            raise UserError(f"--channels={self.channels}: must be 1 (grey) or 3 (colour)")
        smallest = SMALLEST_POOLED if self.convolutional and self.max_pool else 1
        if self.classification and not smallest <= self.image_shape[0] <= 1024:
            raise UserError(f"--image_size={self.image_size}: must be between {smallest} and 1024 for this network")
        if self.histograms and not self.log:
            raise UserError("--histograms needs TensorBoard's summaries: leave --log=False out")
        self._validate_use()
        if self.total_iterations == 0 and self.train:
            raise UserError("--metatrain_iterations=0 and --pretrain_iterations=0 leave nothing to train")

    def _validate_use(self) -> None:
        """Refuses flags of a test or a prediction that do not fit the run or each other."""
        training = self.train and not self.predict
        if self.bn_mode != "transductive" and training:
            raise UserError(f"--bn_mode={self.bn_mode} is for --train=False and --predict; training is transductive")
        if self.bn_mode != "transductive" and self.norm != "batch_norm":
            raise UserError(f"--bn_mode={self.bn_mode} is for batch-norm, and this run has --norm={self.norm}")
        if self.export_dir and training:
            raise UserError(f"--export_dir={self.export_dir} is for --train=False and --predict; train first")
        for name in ("support", "query", "predict_csv"):
            if getattr(self, name) and not self.predict:
                raise UserError(f"--{name}={getattr(self, name)} is for --predict; add that flag")

    @property
    def transductive(self) -> bool:
        """Whether an example's outputs depend on the examples beside it in testing and prediction."""
        return self.norm == "batch_norm" and self.bn_mode == "transductive"

    def uses(self, name: str) -> bool:
        """Whether this algorithm uses a flag."""
        return self.algorithm in users(name)

    @property
    def classification(self) -> bool:
        """Whether the task is to classify images (cross-entropy) rather than to regress."""
        return self.datasource != "sinusoid"

    @property
    def convolutional(self) -> bool:
        """Whether the network is convolutional."""
        return self.classification and self.conv

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height (and width) in pixels, and channels, of the images; (0, 0) without images."""
        size, channels = {"sinusoid": (0, 0), "omniglot": (28, 1)}.get(self.datasource, (84, 3))
        return (
            size if self.image_size == UNSET else self.image_size,
            channels if self.channels == UNSET else self.channels,
        )

    @property
    def pretraining(self) -> int:
        """Pre-training iterations; the oracle is trained by nothing else."""
        if self.baseline == "oracle":
            return self.pretrain_iterations + self.metatrain_iterations
        return self.pretrain_iterations

    @property
    def total_iterations(self) -> int:
        """Iterations of the whole training, pre-training included."""
        return self.pretrain_iterations + self.metatrain_iterations

    def task_size(self, split: str) -> tuple[int, int, int]:
        """Classes, support and query examples a class (for the sinusoid: points) of a split's tasks."""
        return (
            self._training_classes if split == "train" else self.num_classes,
            self.train_shots if split == "train" and self.uses("train_shots") else self.update_batch_size,
            self._training_queries if split == "train" else self.query_per_class,
        )

    @property
    def _training_classes(self) -> int:
        if self.train_num_classes != UNSET:
            return self.train_num_classes
        if self.algorithm != "protonet":
            return self.num_classes
        return 60 if self.datasource == "omniglot" else 30 if self.update_batch_size == 1 else 20

    @property
    def _training_queries(self) -> int:
        own = self.algorithm in METRIC and self.query_size == UNSET
        return 5 if own and self.datasource != "miniimagenet" else self.query_per_class

    @property
    def query_per_class(self) -> int:
        """Query examples a class (for the sinusoid: query points) of a validation or test task."""
        if self.query_size != UNSET:
            return self.query_size
        if self.datasource == "miniimagenet" and self.train:
            return 15
        return self.update_batch_size

    @property
    def evaluation_updates(self) -> int:
        """Inner updates whose losses a summary or a test reports."""
        if self.algorithm in METRIC:
            return 0
        if self.uses("eval_inner_iters"):
            return self.eval_inner_iters
        if self.test_num_updates != UNSET:
            return max(self.num_updates, self.test_num_updates) if self.train else self.test_num_updates
        official = {"sinusoid": 5, "miniimagenet": 1}.get(self.datasource, 10) if self.train else 10
        return max(self.num_updates, official)

    @property
    def evaluation_block(self) -> int:
        """Tasks measured at once in validation and testing, bounded by memory.

        Part of what a test task is: tasks are drawn a block at a time.
        """
        return 4 if self.image_shape[0] > 32 else 20

    @property
    def print_interval(self) -> int:
        """Iterations between two printed lines."""
        return 100 if self.classification else 1000

    @property
    def validation_interval(self) -> int:
        """Iterations between two validations.

        The official interval, but for miniImageNet: 100 tasks, in place of the official 4, take as long there
        as 60 updates.
        """
        often = 10 if self.datasource == "miniimagenet" else 5
        return self.val_interval if self.val_interval != UNSET else often * self.print_interval

    @property
    def clips_gradient(self) -> bool:
        """Each element of the meta-gradient is clipped to [-10, 10] for miniImageNet only."""
        return self.datasource == "miniimagenet"

    @property
    def identity(self) -> dict[str, Any]:
        """The flags that a run's weights depend on; a run with another value of one is another run."""
        return {name: getattr(self, name) for name in names_of("network", "training") if self.uses(name)}

    @property
    def exp_string(self) -> str:
        """The name of the run's folder.

        The official name, which starts with the algorithm's if that is not MAML; behind it whatever else makes
        another run and is not at its default: `.seed1`, `.metalr0.01`.
        """
        shots, rate = self.train_update_batch_size, self.train_update_lr
        changed = [field for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        labels = [(field.metadata["label"], getattr(self, field.name)) for field in changed]
        return "".join(
            [
                "" if self.algorithm == "maml" else f"{self.algorithm}.",
                f"cls_{self.num_classes}.mbs_{self.meta_batch_size}",
                f".ubs_{self.update_batch_size if shots == UNSET else shots}",
                f".numstep{self.num_updates}" if self.uses("num_updates") else "",
                f".updatelr{self.update_lr if rate == UNSET else rate}" if self.uses("update_lr") else "",
                *(f".{label}{'' if value is True else value}" for label, value in labels if label),
                f"hidden{self.num_filters}" if self.num_filters != 64 else "",
                "maxpool" if self.max_pool else "",
                "stopgrad" if self.stop_grad else "",
                self.baseline if self.baseline != "None" else "",
                {"batch_norm": "batchnorm", "layer_norm": "layernorm", "None": "nonorm"}[self.norm],
                *(f".{name.replace('_', '')}{value}" for name, value in self._unnamed.items()),
            ]
        )

    @property
    def _unnamed(self) -> dict[str, Any]:
        """Flags of the identity that the official name does not hold, where they are not at their default."""
        default = defaults_of(self.algorithm, self.datasource)
        labelled = {name for name in self.identity if self.__dataclass_fields__[name].metadata["label"]}
        return {
            name: value
            for name, value in self.identity.items()
            if name not in labelled.union(OFFICIALLY_NAMED) and value != default.get(name, getattr(Config, name))
        }

    def replace(self, **changes: Any) -> "Config":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str) -> "Config":
        """The config that `to_dict` wrote; `where` names its file in the error message.

        Raises:
            UserError: a field is unknown, of another type, or out of range.
        """
        fields = {field.name: field.type for field in dataclasses.fields(cls)}
        for name, value in values.items():
            if name not in fields:
                raise UserError(f"{where}: unknown setting {name!r}; it was written by another version")
            expected: Any = fields[name]
            if isinstance(expected, str):
                expected = {"str": str, "int": int, "float": float, "bool": bool}[expected]
            accepted = (int, float) if expected is float else (expected,)
            if not isinstance(value, accepted) or (isinstance(value, bool) and expected is not bool):
                raise UserError(f"{where}: {name} is {value!r}, expected {expected.__name__}")
        config = cls(**values)
        try:
            config.validate()
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        return config


def users(name: str) -> tuple[str, ...]:
    """The algorithms that use a flag."""
    return Config.__dataclass_fields__[name].metadata["only"]


def names_of(*kinds: str) -> list[str]:
    """The flags of some kinds; see `_flag`."""
    return [field.name for field in dataclasses.fields(Config) if field.metadata["kind"] in kinds]


def defaults_of(algorithm: str, datasource: str) -> dict[str, Any]:
    """The defaults of an algorithm on a data source, where they are not those of the flags."""
    defaults = ALGORITHM_DEFAULTS.get(algorithm, {})
    if datasource in ("miniimagenet", "folder"):
        used = {name: value for name, value in MINIIMAGENET_DEFAULTS.items() if algorithm in users(name)}
        defaults = used | defaults
    if datasource == "folder" and algorithm == "maml":
        defaults = FOLDER_DEFAULTS | defaults
    return defaults

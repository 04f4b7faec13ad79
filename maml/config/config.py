"""One frozen description of a run: the flags, and what follows from them."""

import dataclasses
from typing import Any

from maml import algorithms
from maml.config.checks import check
from maml.config.defaults import PLUS_PLUS_NORMALIZATION, defaults_of
from maml.config.flags import SMALLEST_POOLED, UNSET, Flags, names_of
from maml.config.names import exp_string
from maml.config.record import checked_values, typed
from maml.errors import UserError


@dataclasses.dataclass(frozen=True)
class Config(Flags):
    """The whole setting of a run.

    `Config.from_flags` fills in what depends on the data source and the algorithm; the properties derive the rest.
    """

    @classmethod
    def from_flags(cls, given: dict[str, Any]) -> "Config":
        """The config of the flags that were given; the others take the defaults of algorithm and data source.

        Args:
            given: values by flag name, only those the user set.

        Raises:
            UserError: a flag is unknown, a value of another type or out of range, or two flags contradict each other.
        """
        given = typed(given)
        algorithm = given.get("algorithm", cls.algorithm)
        defaults = defaults_of(algorithm, given.get("datasource", ""))
        if given.get("norm", cls.norm) != "batch_norm" or given.get("datasource") == "own":
            defaults.pop("per_step_bn", None)
        if 0 < given.get("image_size", UNSET) < SMALLEST_POOLED:
            defaults.pop("max_pool", None)  # four poolings would leave nothing
        config = cls(**(defaults | given))
        check(config, set(given))
        return config

    @property
    def transductive(self) -> bool:
        """Whether an example's outputs depend on the examples beside it in testing and prediction."""
        return self.norm == "batch_norm" and self.bn_mode == "transductive"

    def uses(self, name: str) -> bool:
        """Whether this algorithm uses a flag."""
        return self.algorithm in algorithms.users(name)

    @property
    def adapts(self) -> bool:
        """Whether the algorithm adapts by gradient steps; the others only learn an embedding."""
        return self._algorithm.inner_steps

    @property
    def classification(self) -> bool:
        """Whether the task is to classify images (cross-entropy) rather than to regress."""
        return self.loss == "xent" if self.datasource == "own" else self.datasource != "sinusoid"

    @property
    def convolutional(self) -> bool:
        """Whether the network is convolutional."""
        return self.classification and self.conv and self.datasource != "own"

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height (and width) in pixels, and channels, of the images; (0, 0) without images."""
        size, channels = {"sinusoid": (0, 0), "own": (0, 0), "omniglot": (28, 1)}.get(self.datasource, (84, 3))
        return (
            size if self.image_size == UNSET else self.image_size,
            channels if self.channels == UNSET else self.channels,
        )

    def turns_classes(self, split: str) -> bool:
        """Whether each class of a task is turned by quarters: the official MAML code does so in tests, too."""
        if self.datasource == "omniglot" and self.conventions == "maml":
            return True
        return split == "train" and (self.rotate_classes or self.datasource == "omniglot")

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation of each channel that images are normalized by, if they are.

        Raises:
            UserError: `normalize` does not hold them.
        """
        if not self.normalize:
            return PLUS_PLUS_NORMALIZATION.get(self.datasource) if self.conventions == "maml++" else None
        if self.normalize == "auto":
            raise UserError("--normalize=auto: its numbers are read from the data; take DataGenerator(config).config")
        mean, _, deviation = self.normalize.partition("/")
        try:
            means, deviations = (tuple(float(number) for number in part.split(",")) for part in (mean, deviation))
        except ValueError:
            means, deviations = (), ()
        channels = self.image_shape[1]
        if not len(means) == len(deviations) == channels or not all(0 < value < 100 for value in deviations):
            numbers = ",".join(["0.5"] * channels)
            raise UserError(
                f"--normalize={self.normalize}: must be auto, or {channels} means and deviations above 0, such as "
                f"{numbers}/{numbers}"
            )
        return means, deviations

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
    def _algorithm(self) -> algorithms.Entry:
        return algorithms.ENTRIES[self.algorithm]

    @property
    def _training_classes(self) -> int:
        if self.train_num_classes != UNSET:
            return self.train_num_classes
        return self._algorithm.training_classes(self.datasource, self.update_batch_size) or self.num_classes

    @property
    def _training_queries(self) -> int:
        own = self._algorithm.training_queries(self.datasource)
        return own if own and self.query_size == UNSET else self.query_per_class

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
        if not self.adapts or self.test_head == "cosine":
            return 0
        if self.uses("eval_inner_iters"):
            return self.eval_inner_iters
        if self.test_num_updates == UNSET and (self.learn_rates == "step" or self.per_step_bn):
            return self.num_updates  # further steps have no weights of their own
        if self.test_num_updates != UNSET:
            return max(self.num_updates, self.test_num_updates) if self.train else self.test_num_updates
        official = {"sinusoid": 5, "own": 1, "miniimagenet": 1}.get(self.datasource, 10) if self.train else 10
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
        return 100 if self.classification or self.datasource == "own" else 1000

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

    def replace(self, **changes: Any) -> "Config":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, ready for JSON."""
        return dataclasses.asdict(self)

    @property
    def exp_string(self) -> str:
        """The name of the run's folder."""
        return exp_string(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str) -> "Config":
        """The config that `to_dict` wrote; `where` names its file in the error message.

        Raises:
            UserError: a field is unknown, of another type, or out of range.
        """
        config = cls(**checked_values(values, where))
        try:
            check(config)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        return config

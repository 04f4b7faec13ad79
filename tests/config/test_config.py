"""Flags, their official defaults, and what depends on the data source."""

import pytest

from maml.algorithms import ENTRIES
from maml.config import Config
from maml.errors import UserError

OFFICIAL_DEFAULTS = {
    "datasource": "sinusoid",
    "num_classes": 5,
    "pretrain_iterations": 0,
    "metatrain_iterations": 15000,
    "meta_batch_size": 25,
    "meta_lr": 0.001,
    "update_batch_size": 5,
    "update_lr": 1e-3,
    "num_updates": 1,
    "norm": "batch_norm",
    "num_filters": 64,
    "conv": True,
    "max_pool": False,
    "stop_grad": False,
    "log": True,
    "resume": True,
    "train": True,
    "test_iter": -1,
    "test_set": False,
    "train_update_batch_size": -1,
    "train_update_lr": -1,
}


def test_official_defaults():
    values = Config().to_dict()
    assert {name: values[name] for name in OFFICIAL_DEFAULTS} == OFFICIAL_DEFAULTS


def test_miniimagenet_takes_the_papers_values_where_nothing_was_given():
    config = Config.from_flags({"datasource": "miniimagenet"})
    assert (config.max_pool, config.num_filters, config.update_lr, config.meta_batch_size) == (True, 32, 0.01, 4)
    given = {"datasource": "miniimagenet", "max_pool": False, "num_filters": 64, "update_lr": 0.1, "meta_batch_size": 2}
    config = Config.from_flags(given)
    assert {name: config.to_dict()[name] for name in given} == given


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (
            {"datasource": "miniimagenet", "update_batch_size": 1, "num_updates": 5},
            "cls_5.mbs_4.ubs_1.numstep5.updatelr0.01hidden32maxpoolbatchnorm",
        ),
        ({"norm": "None", "update_batch_size": 10}, "cls_5.mbs_25.ubs_10.numstep1.updatelr0.001nonorm"),
        ({"norm": "None", "baseline": "oracle"}, "cls_5.mbs_25.ubs_5.numstep1.updatelr0.001oraclenonorm"),
        (
            {"datasource": "omniglot", "stop_grad": True, "norm": "layer_norm", "update_lr": 0.4},
            "cls_5.mbs_25.ubs_5.numstep1.updatelr0.4stopgradlayernorm",
        ),
        (
            {"update_batch_size": 3, "train_update_batch_size": 1, "update_lr": 0.1, "train_update_lr": 0.4},
            "cls_5.mbs_25.ubs_1.numstep1.updatelr0.4batchnorm",
        ),
    ],
)
def test_exp_string_is_the_official_one(given, name):
    assert Config.from_flags(given).exp_string == name


@pytest.mark.parametrize(
    ("given", "query_per_class", "evaluation_updates"),
    [
        ({}, 5, 5),
        ({"train": False}, 5, 10),
        ({"datasource": "omniglot"}, 5, 10),
        ({"datasource": "omniglot", "query_size": 3, "test_num_updates": 2}, 3, 2),
        ({"datasource": "miniimagenet", "update_batch_size": 1}, 15, 1),
        ({"datasource": "miniimagenet", "num_updates": 5}, 15, 5),
        ({"datasource": "miniimagenet", "update_batch_size": 1, "train": False}, 1, 10),
    ],
)
def test_sizes_of_summaries_and_query_sets(given, query_per_class, evaluation_updates):
    config = Config.from_flags(given)
    assert config.query_per_class == query_per_class
    assert config.evaluation_updates == evaluation_updates


def test_the_oracle_only_pretrains():
    config = Config.from_flags({"baseline": "oracle", "pretrain_iterations": 10, "metatrain_iterations": 20})
    assert config.pretraining == config.total_iterations == 30


@pytest.mark.parametrize(
    "given",
    [
        {"datasource": "imagenet"},
        {"num_classes": 0},
        {"num_classes": 1, "datasource": "omniglot"},
        {"update_batch_size": 0},
        {"update_batch_size": -1},
        {"meta_batch_size": 0},
        {"num_updates": 0},
        {"num_filters": 0, "datasource": "omniglot"},
        {"meta_lr": -0.1},
        {"update_lr": float("nan")},
        {"update_lr": float("inf")},
        {"query_size": 0},
        {"test_num_updates": 0},
        {"norm": "group_norm"},
        {"baseline": "oracle", "datasource": "omniglot"},
        {"max_pool": True},
        {"metatrain_iterations": 0},
        {"metatrain_iterations": -5},
        {"test_tasks": 1},
        {"seed": -1},
        {"image_size": 28, "datasource": "omniglot"},
        {"image_size": 15, "datasource": "folder", "max_pool": True},
        {"channels": 2, "datasource": "folder"},
        {"omniglot_resize": "lanczos", "datasource": "miniimagenet"},
    ],
)
def test_bad_values_are_refused_with_one_line_that_names_the_flag(given):
    with pytest.raises(UserError) as error:
        Config.from_flags(given)
    message = str(error.value)
    assert "\n" not in message
    assert any(f"--{name}" in message for name in given)


@pytest.mark.parametrize(
    "values", [{"num_classes": "5"}, {"unknown": 1}, {"conv": 1}, {"update_lr": None}, {"seed": -1}]
)
def test_a_foreign_run_record_is_refused(values):
    with pytest.raises(UserError, match=r"run\.json"):
        Config.from_dict(values, "run.json")


def test_round_trip_through_a_dict():
    config = Config.from_flags({"datasource": "miniimagenet", "seed": 3})
    assert Config.from_dict(config.to_dict(), "run.json") == config


def test_a_config_leaves_the_algorithms_defaults_as_they_are():
    before = dict(ENTRIES["protonet"].defaults(""))
    with pytest.raises(UserError):  # small images are for --datasource=folder
        Config.from_flags({"algorithm": "protonet", "image_size": 8})
    assert ENTRIES["protonet"].defaults("") == before

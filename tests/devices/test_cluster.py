"""Which workers there are, and how they meet: every message is one line."""

import contextlib
import json
import socket
import threading

import pytest

from maml.devices import cluster
from maml.devices.cluster import Cluster, agreed, expanded_hosts, from_environment
from maml.errors import UserError
from maml.launch import environment_of, free_ports


def tf_config(addresses, kind="worker", index=0, **jobs):
    return {"TF_CONFIG": json.dumps({"cluster": {"worker": addresses} | jobs, "task": {"type": kind, "index": index}})}


def test_tf_config_with_and_without_a_chief():
    assert from_environment({}) is None
    assert from_environment(tf_config(["a:1"])) is None
    assert from_environment(tf_config(["a:1", "b:2"], index=1)) == Cluster(("a:1", "b:2"), 1)
    with_chief = {"chief": ["c:3"]}
    assert from_environment(tf_config(["a:1"], **with_chief)) == Cluster(("c:3", "a:1"), 1)
    assert from_environment(tf_config(["a:1"], "chief", **with_chief)) == Cluster(("c:3", "a:1"), 0)


def test_what_the_launcher_says_is_understood():
    found = from_environment(environment_of(1, ["h:1", "h:2"]))
    assert found == Cluster(("h:1", "h:2"), 1) and found.port == 2


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TF_CONFIG": "{"}, "TF_CONFIG: cannot be read"),
        ({"TF_CONFIG": "[1]"}, "TF_CONFIG: cannot be read"),
        ({"TF_CONFIG": '{"cluster": {"worker": 3}}'}, "TF_CONFIG: cannot be read"),
        (tf_config(["a:1", "b"]), "'b' is no address"),
        (tf_config(["a:1", "b:65536"]), "'b:65536' is no address"),
        (tf_config(["a:0", "b:1"]), "'a:0' is no address"),
        (tf_config(["a:1", "b:2", "a:1"]), "a:1 is given to 2 workers"),
        (tf_config(["a:1", "b:2"], chief=["a:1"]), "a:1 is given to 2 workers"),
        (tf_config(["a:1", "b:2"], index=2), "no worker 2 among the 2"),
        (tf_config(["a:1", "b:2"], ps=["p:1"]), "a job called ps has no part"),
        (tf_config(["a:1", "b:2"], "evaluator"), "a job called evaluator has no part"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, "do not describe a job step"),
        ({"SLURM_STEP_NUM_TASKS": "two", "SLURM_PROCID": "0"}, "do not describe a job step"),
        (
            {
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_PROCID": "5",
                "SLURM_STEP_NODELIST": "a",
                "SLURM_STEP_TASKS_PER_NODE": "2",
            },
            "do not describe a job step",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_understood_is_one_line(environment, message):
    with pytest.raises(UserError, match=message) as error:
        from_environment(environment)
    assert "\n" not in str(error.value)


def test_slurms_workers_are_numbered_as_srun_starts_them():
    environment = {"SLURM_STEP_NUM_TASKS": "5", "SLURM_PROCID": "3", "SLURM_JOB_ID": "120007"}
    environment |= {"SLURM_STEP_NODELIST": "gpu[09-10],big", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1"}
    addresses = ("gpu09:20007", "gpu09:20008", "gpu10:20007", "gpu10:20008", "big:20007")
    assert from_environment(environment) == Cluster(addresses, 3)
    assert from_environment({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a", ["a"]),
        ("a,b", ["a", "b"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[2,10-11],x", ["n2", "n10", "n11", "x"]),
        ("n[008-010].lan,m", ["n008.lan", "n009.lan", "n010.lan", "m"]),
    ],
)
def test_slurms_lists_of_hosts(text, hosts):
    assert expanded_hosts(text) == hosts


def met(facts, decide=lambda: {"answer": 42}):
    """What each of as many workers returned or raised."""
    addresses = tuple(f"127.0.0.1:{port}" for port in free_ports(len(facts)))
    outcomes = [None] * len(facts)

    def work(number):
        try:
            outcomes[number] = agreed(Cluster(addresses, number), facts[number], decide)
        except UserError as error:
            outcomes[number] = str(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in reversed(range(len(facts)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return outcomes


def test_all_workers_get_what_the_chief_decides():
    large = {"words": ["x" * 1000] * 200}
    assert met([{"v": "1"}] * 3, lambda: large) == [large] * 3


def test_workers_that_differ_are_named_to_all():
    outcomes = met([{"--seed": "0"}, {"--seed": "0"}, {"--seed": "1"}])
    assert len(set(outcomes)) == 1 and outcomes[0].startswith("worker 2 has --seed 1, and worker 0 has 0")
    outcomes = met([{}, {"--seed": "1"}])
    assert outcomes[1].startswith("worker 1 has --seed 1, and worker 0 has nothing")


def test_what_the_chief_cannot_decide_all_are_told():
    def refuse():
        raise UserError("no run under logs")

    assert met([{}, {}], refuse) == ["no run under logs"] * 2


def test_who_is_missing_is_said_and_a_stranger_does_not_count(monkeypatch, capsys):
    monkeypatch.setattr(cluster, "PATIENCE", 0.2)
    addresses = tuple(f"127.0.0.1:{port}" for port in free_ports(2))
    chief = threading.Thread(target=lambda: agreed(Cluster(addresses, 0), {}, dict))
    chief.start()
    host, port = addresses[0].split(":")
    for line in (b"GET / HTTP/1.1\r\n", b'{"greeting": "maml-worker", "index": 7}\n', b"[1]\n"):
        stranger = None
        while stranger is None:  # until the chief listens
            with contextlib.suppress(ConnectionRefusedError):
                stranger = socket.create_connection((host, int(port)), 5)
        with stranger:
            stranger.sendall(line)
    chief.join(2)
    assert chief.is_alive()
    agreed(Cluster(addresses, 1), {}, dict)
    chief.join(10)
    assert not chief.is_alive()
    assert f"for worker 1 ({addresses[1]})" in capsys.readouterr().err


def test_a_worker_that_went_away_while_others_were_waited_for_is_missing_again():
    """Or TensorFlow would wait for it in silence."""
    addresses, outcomes = tuple(f"127.0.0.1:{port}" for port in free_ports(3)), []
    chief = threading.Thread(target=lambda: outcomes.append(agreed(Cluster(addresses, 0), {}, dict)))
    chief.start()
    host, port = addresses[0].split(":")
    first = None
    while first is None:
        with contextlib.suppress(ConnectionRefusedError):
            first = socket.create_connection((host, int(port)), 5)
    hello = {"greeting": cluster.GREETING, "index": 1, "facts": {}}
    first.sendall(json.dumps(hello).encode() + b"\n")
    first.close()
    second = threading.Thread(target=lambda: outcomes.append(agreed(Cluster(addresses, 2), {}, dict)))
    second.start()
    chief.join(3)
    assert chief.is_alive() and second.is_alive() and not outcomes
    agreed(Cluster(addresses, 1), {}, dict)
    chief.join(10), second.join(10)
    assert outcomes == [{}, {}]


def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"worker 0 \(127.0.0.1:{port}\): port {port} cannot be used"):
            agreed(Cluster((f"127.0.0.1:{port}", "127.0.0.1:1"), 0), {}, dict)

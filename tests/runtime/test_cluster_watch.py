"""Ray's control service is there or not."""

import socket
import threading

from system.errors import ClusterLostError
from system.runtime.cluster_watch import is_dead, look_for_service


def test_a_service_that_stops_answering_is_lost_after_its_patience() -> None:
    server = socket.create_server(("127.0.0.1", 0), backlog=64)
    port = server.getsockname()[1]
    told: list[ClusterLostError] = []
    arguments = (f"127.0.0.1:{port}", 1.5, threading.Event(), told.append)
    looking = threading.Thread(target=look_for_service, args=arguments, daemon=True)
    looking.start()
    looking.join(2.0)
    assert looking.is_alive()
    assert told == []
    server.close()
    looking.join(60.0)
    assert [str(error).partition(" has")[0] for error in told] == [
        f"Ray's control service (gcs_server at 127.0.0.1:{port})"
    ]


def test_nothing_is_told_of_a_run_that_is_over() -> None:
    is_over = threading.Event()
    is_over.set()
    told: list[ClusterLostError] = []
    look_for_service("127.0.0.1:1", 0.0, is_over, told.append)
    assert told == []


def test_a_node_is_dead_when_the_cluster_says_so_of_it() -> None:
    nodes = [{"NodeID": "a", "Alive": True}, {"NodeID": "b", "Alive": False}]
    assert [is_dead(name, nodes) for name in "abc"] == [False, True, False]

"""Ray's control service is there or not."""

import asyncio

import pytest

from system.errors import ClusterLostError
from system.runtime.cluster_watch import is_dead, watch_address


def test_a_service_that_stops_answering_is_lost_after_its_patience() -> None:
    async def watched() -> str:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        watching = asyncio.ensure_future(watch_address(f"127.0.0.1:{port}", patience_seconds=0.5))
        await asyncio.sleep(0.2)
        assert not watching.done()
        server.close()
        await server.wait_closed()
        with pytest.raises(ClusterLostError) as raised:
            await asyncio.wait_for(watching, 30.0)
        return str(raised.value)

    assert "gcs_server at 127.0.0.1:" in asyncio.run(watched())


def test_a_node_is_dead_when_the_cluster_says_so_of_it() -> None:
    nodes = [{"NodeID": "a", "Alive": True}, {"NodeID": "b", "Alive": False}]
    assert [is_dead(name, nodes) for name in "abc"] == [False, True, False]

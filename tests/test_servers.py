"""The helpers of `servers`: what fault tests rely on."""

import pytest
from thriftroute.tests.helpers.servers import postgres_server, redis_server

redis = pytest.importorskip("redis")


@pytest.mark.parametrize("keeps", [True, False])
def test_redis_stops_and_starts_on_its_port(keeps: bool) -> None:
    with redis_server(keeps=keeps) as server, redis.Redis.from_url(server.url) as client:
        client.set("a", "1")
        server.stop()
        assert server.pid is None
        with pytest.raises(redis.ConnectionError):
            client.get("a")
        server.start()
        assert client.get("a") == (b"1" if keeps else None)


def test_a_paused_redis_hangs_until_it_is_resumed() -> None:
    with (
        redis_server() as server,
        redis.Redis.from_url(server.url, socket_timeout=1, retry=None) as client,
    ):
        server.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        server.resume()
        assert client.ping()
        server.pause()  # and the end of the block ends a paused server too


def test_postgres_keeps_its_data_over_a_restart_and_a_crash() -> None:
    psycopg = pytest.importorskip("psycopg")
    with postgres_server() as server:
        url = server.url.replace("+psycopg", "")
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE t (x int)")
            connection.execute("INSERT INTO t VALUES (7)")
        for end in (server.stop, server.kill):
            end()
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(url, connect_timeout=2)
            server.start()
            with psycopg.connect(url) as connection:
                assert connection.execute("SELECT x FROM t").fetchone() == (7,)
    assert not server.folder.exists()


def test_a_server_that_cannot_start_says_what_it_wrote() -> None:
    with redis_server() as server:
        server._command += ["--maxmemory", "nonsense"]
        server.stop()
        with pytest.raises(RuntimeError, match="maxmemory"):
            server.start()

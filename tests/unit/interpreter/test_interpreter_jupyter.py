"""The Jupyter port: the endpoints and messages that a client of a Jupyter server uses to run code."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import httpx
import pytest
from interpreter_world import Service
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus


def message(kind: str, content: dict[str, Any], channel: str = "shell") -> dict[str, Any]:
    header = {"msg_id": str(uuid.uuid4()), "msg_type": kind, "username": "test", "session": str(uuid.uuid4()), "date": "", "version": "5.3"}
    return {"header": header, "parent_header": {}, "metadata": {}, "content": content, "buffers": [], "channel": channel}


async def ask(socket: ClientConnection, kind: str, **content: Any) -> list[dict[str, Any]]:
    """All messages of one request, in order, until its kernel is idle."""
    request = message(kind, content)
    await socket.send(json.dumps(request))
    found = []
    while True:
        said = json.loads(await socket.recv())
        if said["parent_header"].get("msg_id") != request["header"]["msg_id"]:
            continue
        found.append(said)
        if said["msg_type"] == "status" and said["content"]["execution_state"] == "idle":
            return found


def kernel(service: Service, name: str = "python3") -> str:
    response = httpx.post(f"{service.jupyter}/api/kernels", json={"name": name}, timeout=60)
    assert response.status_code == 201
    return str(response.json()["id"])


def channels(service: Service, kernel_id: str) -> connect:
    return connect(f"ws://127.0.0.1:{service.jupyter_port}/api/kernels/{kernel_id}/channels", max_size=None)


async def test_a_cell_as_the_native_sdk_runs_it(service: Service) -> None:
    kernels = httpx.get(f"{service.jupyter}/api/kernels").json()
    assert kernels[0]["name"] == "wrenn"  # what its later release looks for; its earlier one takes the first
    async with channels(service, kernels[0]["id"]) as socket:
        said = await ask(socket, "execute_request", code="print('out')\nimport sys; print('err', file=sys.stderr)\ndisplay('d')\n6 * 7", silent=False)
    kinds = [(one["msg_type"], one["channel"]) for one in said]
    assert kinds[:2] == [("status", "iopub"), ("execute_input", "iopub")]
    assert kinds[-2:] == [("execute_reply", "shell"), ("status", "iopub")]
    by_kind = {one["msg_type"]: one["content"] for one in said}
    assert by_kind["execute_result"]["data"] == {"text/plain": "42"}
    assert by_kind["display_data"]["data"] == {"text/plain": "'d'"}
    assert by_kind["execute_reply"]["status"] == "ok"
    assert [one["content"]["name"] for one in said if one["msg_type"] == "stream"] == ["stdout", "stderr"]
    assert all(one["header"]["msg_type"] == one["msg_type"] and one["header"]["version"] == "5.3" for one in said)


async def test_errors_pictures_and_completion(service: Service) -> None:
    async with channels(service, kernel(service)) as socket:
        failed = {one["msg_type"]: one["content"] for one in await ask(socket, "execute_request", code="1/0")}
        assert (failed["error"]["ename"], failed["execute_reply"]["status"]) == ("ZeroDivisionError", "error")
        drawn = await ask(socket, "execute_request", code="import matplotlib.pyplot as plt\n_ = plt.plot([1, 2])")
        (picture,) = [one["content"]["data"] for one in drawn if one["msg_type"] == "display_data"]
        assert sorted(picture) == ["image/png", "text/plain"]
        await ask(socket, "execute_request", code="known_by_name = 1")
        found = {one["msg_type"]: one["content"] for one in await ask(socket, "complete_request", code="x = 1\nknown_by", cursor_pos=14)}
        assert found["complete_reply"]["matches"] == ["known_by_name"]
        assert (found["complete_reply"]["cursor_start"], found["complete_reply"]["cursor_end"]) == (6, 14)
        about = {one["msg_type"]: one["content"] for one in await ask(socket, "kernel_info_request")}
        assert about["kernel_info_reply"]["language_info"]["name"] == "python"


async def test_a_silent_cell_says_nothing_and_does_not_count(service: Service) -> None:
    async with channels(service, kernel(service)) as socket:
        said = await ask(socket, "execute_request", code="x = 1\n5", silent=True)
        assert "execute_result" not in {one["msg_type"] for one in said}
        after = {one["msg_type"]: one["content"] for one in await ask(socket, "execute_request", code="x")}
        assert after["execute_result"]["execution_count"] == 1


async def test_two_clients_of_a_kernel_both_hear_it(service: Service) -> None:
    kernel_id = kernel(service)
    async with channels(service, kernel_id) as one, channels(service, kernel_id) as other:
        await ask(other, "kernel_info_request")
        await ask(one, "execute_request", code="'heard'")
        while True:
            said = json.loads(await other.recv())
            if said["msg_type"] == "execute_result":
                assert said["content"]["data"]["text/plain"] == "'heard'"
                break


async def test_a_cell_goes_on_without_its_client_and_can_be_interrupted_by_request(service: Service) -> None:
    kernel_id = kernel(service)
    async with channels(service, kernel_id) as socket:
        await socket.send(json.dumps(message("execute_request", {"code": "x = 1\nimport time\ntime.sleep(1000)"})))
        while json.loads(await socket.recv())["msg_type"] != "execute_input":
            pass
    assert httpx.get(f"{service.jupyter}/api/kernels/{kernel_id}").json()["execution_state"] == "busy"
    async with channels(service, kernel_id) as socket:
        asked = asyncio.create_task(ask(socket, "execute_request", code="x"))
        await asyncio.to_thread(httpx.post, f"{service.jupyter}/api/kernels/{kernel_id}/interrupt")
        assert "execute_result" in {one["msg_type"] for one in await asked}


async def test_output_after_a_cell_reaches_the_clients(service: Service) -> None:
    async with channels(service, kernel(service)) as socket:
        code = "import threading\nthreading.Timer(0.2, lambda: print('late')).start()"
        request = message("execute_request", {"code": code})
        await socket.send(json.dumps(request))
        while True:
            said = json.loads(await socket.recv())
            if said["msg_type"] == "stream":
                assert said["content"]["text"] == "late\n"
                assert said["parent_header"]["msg_id"] == request["header"]["msg_id"]
                break


def test_kernels_are_made_listed_restarted_and_removed(service: Service) -> None:
    base = service.jupyter
    assert httpx.post(f"{base}/api/kernels").status_code == 201
    assert httpx.post(f"{base}/api/kernels", json={"name": "cobol"}).status_code == 400
    kernel_id = kernel(service, "bash")
    assert httpx.get(f"{base}/api/kernels/{kernel_id}").json()["name"] == "bash"
    assert kernel_id in {one["id"] for one in service.client.get("/contexts").json()}
    assert httpx.post(f"{base}/api/kernels/{kernel_id}/restart", timeout=60).status_code == 200
    assert httpx.delete(f"{base}/api/kernels/{kernel_id}").status_code == 204
    assert httpx.get(f"{base}/api/kernels/{kernel_id}").status_code == 404
    assert "python3" in httpx.get(f"{base}/api/kernelspecs").json()["kernelspecs"]
    assert httpx.get(f"{base}/api/status").json()["kernels"] >= 1
    assert httpx.get(f"{base}/api").json()["version"]


@pytest.mark.parametrize("frame", ["{", "[]", '{"header": {}}', '{"header": {"msg_type": 5}}', b"\x00\x01"])
async def test_what_is_no_message_closes_the_connection(service: Service, frame: str | bytes) -> None:
    async with channels(service, kernel(service)) as socket:
        await socket.send(frame)
        await socket.wait_closed()
        assert socket.close_code == 1003


async def test_an_unknown_kernel_has_no_channels(service: Service) -> None:
    with pytest.raises(InvalidStatus, match="404"):
        async with channels(service, "nothing"):
            pass

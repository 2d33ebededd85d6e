"""Where a sandbox may go, through all its lives on a host: from its first packet on, over pauses, forks and owners of the home."""

from __future__ import annotations

from pathlib import Path

import pytest
from host_world import SHAPE, Stepped, World, opened

from torpor.host.adopt import lost
from torpor.host.agent import CreateSpec
from torpor.host.desk import HostDesk
from torpor.host.pool import Kind
from torpor.model.errors import HostError, NotFound
from torpor.model.sandbox import Egress, NetworkMode
from torpor.ports.hosts import Order
from torpor.testing.fake_host import FakeNetworks

NONE, ALL = Egress(), Egress(deny=("0.0.0.0/0",))
SAID = {ALL: "|0.0.0.0/0"}


def assert_said(world: World, *egress: Egress) -> None:
    assert world.networks.said() == sorted(SAID.get(one, "") for one in egress)


async def test_it_stays_over_pauses_and_cold_boots_and_goes_to_forks(home: Path) -> None:
    async with opened(home) as world:
        sandbox = await world.create("x", egress=ALL)
        assert_said(world, ALL)
        for way in (world.agent.resume, world.agent.cold_boot):
            await world.agent.pause(sandbox.id)
            await way(sandbox.id)
            assert_said(world, ALL)
        await world.agent.fork(sandbox.id, 2)
        assert_said(world, ALL, ALL, ALL)
        await world.clear()


async def test_a_change_counts_at_once_and_while_paused(home: Path) -> None:
    async with opened(home) as world:
        sandbox = await world.create("x")
        await world.agent.set_egress(sandbox.id, ALL)
        assert_said(world, ALL)
        await world.agent.pause(sandbox.id)
        await world.agent.set_egress(sandbox.id, NONE)
        await world.agent.resume(sandbox.id)
        assert_said(world, NONE)
        with pytest.raises(NotFound):
            await world.agent.set_egress("0" * 25, ALL)
        await world.clear()


async def test_one_without_a_network_takes_it_too(home: Path) -> None:
    async with opened(home) as world:
        sandbox = await world.agent.create(CreateSpec("tiny", SHAPE, NetworkMode.OFF, egress=ALL))
        await world.agent.set_egress(sandbox.id, NONE)
        assert sandbox.record.egress == NONE
        await world.clear()


async def test_a_pooled_one_is_restricted_before_it_is_handed_out(home: Path) -> None:
    async with opened(home, pool_size=1) as world:
        world.agent.pool.stock(Kind("tiny", SHAPE, NetworkMode.ON))
        await world.agent.pool.filled()
        said: list[list[str]] = []
        networks = world.agent.context.networks
        assert isinstance(networks, Stepped)
        sandbox = await world.create("x", egress=ALL)
        said.append(world.networks.said())
        assert world.agent.pool.hits == 1
        assert sandbox.record.egress == ALL
        assert "|0.0.0.0/0" in said[0]
        await world.clear()


async def test_the_next_owner_says_again_what_the_record_says(home: Path) -> None:
    async with opened(home) as world:
        sandbox = await world.create("x", egress=ALL)
        slot = sandbox.record.running.slot if sandbox.record.running else None
        assert slot is not None
    (home / "slots" / slot).write_text("tampered|")
    async with opened(home) as world:
        assert_said(world, ALL)
        assert world.agent.get(sandbox.id).record.egress == ALL
        await world.agent.set_egress(sandbox.id, NONE)
        assert world.networks.said() == ["|"]
    (home / "slots" / slot).write_text("|0.0.0.0/0")
    async with opened(home) as world:  # of a change that an owner died over
        assert world.networks.said() == ["|"]
        await world.clear()


async def test_a_sandbox_is_taken_back_also_where_its_rules_cannot_be_said_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(home) as world:
        sandbox = await world.create("x", egress=ALL)

    async def refuse(*_: object) -> None:
        raise HostError("nft refused.")

    with monkeypatch.context() as patch:
        patch.setattr(FakeNetworks, "restrict", refuse)
        async with opened(home) as world:
            assert await world.text(sandbox.id) == "x"
            assert_said(world, ALL)  # what the kernel has
            await world.clear()


async def test_a_record_made_again_from_a_pause_has_it(home: Path) -> None:
    async with opened(home) as world:
        sandbox = await world.create("x", egress=ALL)
        await world.agent.pause(sandbox.id)
        (made,) = lost(world.agent.context, set())
        assert made.egress == ALL
        await world.clear()


async def test_what_the_network_refuses_leaves_the_old(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(home) as world:
        sandbox = await world.create("x", egress=ALL)

        async def refuse(*_: object) -> None:
            raise HostError("nft refused.")

        with monkeypatch.context() as patch:
            patch.setattr(world.networks, "restrict", refuse)
            with pytest.raises(HostError):
                await world.agent.set_egress(sandbox.id, NONE)
            with pytest.raises(HostError):  # a start that cannot be restricted does not happen
                await world.create("y", egress=ALL)
        assert sandbox.record.egress == ALL
        assert_said(world, ALL)
        assert len(world.agent.records()) == 1
        await world.clear()


async def test_the_desk_passes_it_on_and_says_whether_there_is_a_network(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(home) as world:
        desk = HostDesk("here", world.agent, home)
        await desk.open()
        sandbox_id = "1" * 25
        await desk.create(Order(sandbox_id, "2" * 25, "tiny", SHAPE, NetworkMode.ON, egress=ALL))
        assert_said(world, ALL)
        assert (await desk.capacity()).no_network == ""
        monkeypatch.setattr(world.networks, "problems", lambda: ("No root.", "No nft."))
        assert (await desk.capacity()).no_network == "No root."
        with pytest.raises(NotFound):
            await desk.set_egress("3" * 25, NONE)
        await world.clear()
        await desk.close()

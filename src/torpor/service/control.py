"""The control plane of one process: every use case on one context, and the tasks that keep records and hosts together."""

from __future__ import annotations

from torpor.model.records import Sandbox
from torpor.service.activity import Activity
from torpor.service.admission import Admission
from torpor.service.chores import Chores
from torpor.service.context import Context
from torpor.service.events import Events
from torpor.service.figures import Figures
from torpor.service.operations import Operations
from torpor.service.orders import Orders
from torpor.service.presence import Presence
from torpor.service.reconcile import Reconciler
from torpor.service.retention import Retention
from torpor.service.sandboxes import Sandboxes
from torpor.service.templates import Templates
from torpor.service.timers import Timers


class ControlPlane:
    """Opened when store, bus and hosts are; closed before them. Any number may work on one store, if their policy says that they are not alone (`sole`), and
    on the same hosts, if it says so too (`embedded`)."""

    def __init__(self, context: Context) -> None:
        self.context = context
        orders = Orders(context)
        activity = Activity(context)
        self.operations = Operations(context, orders)
        self.presence = Presence(context, self.operations)
        self.templates = Templates(context)
        self.reconciler = Reconciler(context, orders, self.operations, self.presence, self.templates.learn)
        self.sandboxes = Sandboxes(context, self.operations, Admission(context), self.reconciler, activity)
        self.figures = Figures(context)
        self.events = Events(context)
        self.timers = Timers(context, self.operations, self.presence, activity)
        self.retention = Retention(context)
        self.chores = Chores(context, self.sandboxes, self.templates)
        self.operations.changed = self._changed

    def _changed(self, sandbox: Sandbox) -> None:
        self.timers.changed(sandbox)
        self.figures.changed(sandbox)

    async def open(self) -> None:
        """Takes up what a dead process left, brings records and hosts to agree, then keeps them so."""
        await self.templates.learn()
        await self.presence.open()
        await self.reconciler.run()
        self.reconciler.start()
        self.timers.start()
        self.figures.start()
        self.retention.start()
        self.chores.start()

    async def close(self) -> None:
        """Lets go: operations under way go on at their hosts, and are taken up by the next."""
        await self.chores.close()
        await self.retention.close()
        await self.timers.close()
        await self.reconciler.close()
        await self.presence.close()
        await self.operations.close()
        await self.figures.close()

"""The plans of a state: one for each bucket, over one carrier for each device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..coding.sizes import words_for
from .room import Room
from .tensors import Plan, carrier_for, plan_for

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .carriers import Carrier


@dataclass
class Plans:
    """The plans of votes over a communicator, which is freed with them; the fields are what `plan_for` asks for."""

    comm: Any
    exchange: str
    tie: str
    seed: int
    abstain: bool
    takes_device_memory: bool
    room: Room | None = None  # memory that is shared with other states' plans
    _plans: dict[int, tuple[tuple[Any, ...], Plan]] = field(default_factory=dict)  # what each was made for, and it
    _carriers: dict[torch.device, Carrier] = field(default_factory=dict)

    def of(self, index: int, gradient: Tensor, sizes: tuple[int, ...]) -> Plan:
        """Return the plan of a bucket; a new one where it is new, or DDP has divided the gradient anew. Collective."""
        where = gradient.device
        key = (sizes, where)
        made_for, plan = self._plans.get(index, (None, None))
        if plan is None or made_for != key:
            if plan is not None:
                plan.close()
            plan = plan_for(
                self._carrier(where), words_for(gradient.numel()), exchange=self.exchange, tie=self.tie,
                seed=self.seed, where=where, sizes=sizes, abstain=self.abstain,
                room=self.room.lease(index) if self.room else None,
            )  # fmt: skip
            self._plans[index] = key, plan
        return plan

    def _carrier(self, where: torch.device) -> Carrier:
        if where not in self._carriers:
            self._carriers[where] = carrier_for(
                self.comm, where, self.exchange, takes_device_memory=self.takes_device_memory
            )
        return self._carriers[where]

    def close(self) -> None:
        """Free the plans, the carriers and the communicator. Collective."""
        for _, plan in self._plans.values():
            plan.close()
        self._plans.clear()
        for carrier in self._carriers.values():
            carrier.close()
        self.comm.Free()

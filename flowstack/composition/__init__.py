"""The composition root: what a process of Flowstack's consists of. Nothing else builds collaborators."""

from flowstack.composition.proxy import ProxyService
from flowstack.composition.several import ParentService, WorkerService

__all__ = ["ParentService", "ProxyService", "WorkerService"]

"""Whether an error says that the device's memory ran out."""

import comfy.model_management


def is_out_of_memory(error: Exception) -> bool:
    """Hosts from 0.24 know more such errors than one class, those of asynchronous work among them."""
    of_host = getattr(comfy.model_management, "is_oom", None)
    return isinstance(error, comfy.model_management.OOM_EXCEPTION) if of_host is None else of_host(error)

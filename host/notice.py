"""A sentence for the person who waits: in the log, and on the node that runs."""

import logging
import sys

from comfy_execution.utils import get_executing_context

logger = logging.getLogger("inlay")


def show_sentence(text: str) -> None:
    """Where a server runs the node, its page shows the sentence below it."""
    logger.info(text)
    context = get_executing_context()
    # Outside a server, in tests and commands, its module need not be there.
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if context is not None and server is not None:
        server.send_progress_text(text, context.node_id)

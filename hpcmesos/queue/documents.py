"""What the leader keeps as one JSON value each: rows of ``settings``, read whole, written whole.

============ ================================================================================================
name         value
============ ================================================================================================
server       the attributes of the server that are set: {name: text}
reservations by name: {"starts_at", "ends_at" (epoch seconds), "nodes", "users", "queues", "by", "note"}
shares       {"projects": {name: shares}, "users": {"project/user": shares}}; what is not named has one share
plugins      what is wrong with the site's plug-ins: {kind: text}; see master/plugins.py
usage        {"at": epoch seconds, "accounts": [[project, user, GPU-seconds, decayed until then], ...]}
gpu_words    operators' last words about GPUs of nodes that were away, until their agents tell of those GPUs:
             {node: {UUID: fault, empty: in use again}}
notices      {"after": id of the last event that mails and webhook calls were made of}
============ ================================================================================================
"""

from __future__ import annotations

SERVER = "server"
RESERVATIONS = "reservations"
SHARES = "shares"
USAGE = "usage"
PLUGINS = "plugins"
NOTICES = "notices"
GPU_WORDS = "gpu_words"

"""The Hugging Face hub, where it can be reached."""

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies


def stay_offline_if_cut_off() -> None:
    """Have the hub client look only at its cache where the hub's name does not even resolve.

    Left alone it tries eleven times, for three quarters of a minute, with a warning for each.
    """
    from huggingface_hub import constants

    if getproxies():  # then names are resolved elsewhere
        return
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True

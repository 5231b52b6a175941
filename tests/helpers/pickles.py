"""Files that torch and pickle write, and objects that do harm when they are read without care."""

import io

import torch


class Calls:
    """Calls a function when a careless program unpickles it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def torch_bytes(content, **options):
    """The bytes that torch.save writes."""
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()

"""Asking a server for a file: redirects, certificates, and one line about whatever keeps the file from coming."""

import base64
import contextlib
import http.client
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from ..version import version
from .address import escaped, shown

TIMEOUT = 30  # seconds without an answer, or without a byte
PASSING = (429, 500, 502, 503, 504)  # answers of a server that may have a better one soon
MOST_REDIRECTS = 10
REFUSED = ": refused"


class CutError(Exception):
    """The connection broke, or the server asked to come again: worth another try. The message is a part of a line."""


class UnreachableError(Exception):
    """There was no connection at all. The message is a part of a line."""


@contextlib.contextmanager
def answer(url: str, headers: Mapping[str, str]) -> Iterator[Any]:
    """A server's answer to a request for a file.

    Args:
        url: with ``http://`` or ``https://``; a user and a password in it are sent to that server only.
        headers: of the request.

    Yields:
        ``http.client.HTTPResponse``: with ``status`` 200, 206 or 416.

    Raises:
        CutError, UnreachableError: if another try may help.
        FileNotFoundError, PermissionError, OSError, ValueError: otherwise; one line with the address.
    """
    try:
        response = _opener().open(_request(url, headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 416:
                raise _refusal(url, error) from None
            yield error
            return
    except urllib.error.URLError as error:
        raise _unreachable(url, error.reason) from None
    except (http.client.InvalidURL, UnicodeError, ValueError) as error:
        raise ValueError(f"{shown(url)}: an address that cannot be read: check it") from error
    except (http.client.HTTPException, OSError) as error:
        raise CutError(f"the server gave no answer ({_words(error)})") from None
    with response:
        yield response


def _request(url, headers):
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    if not parts.hostname:
        raise ValueError("no host")
    address = escaped(parts._replace(netloc=host, fragment="").geturl())
    request = urllib.request.Request(address, headers={"User-Agent": f"loco-det/{version()}", **headers})
    if parts.username:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        token = base64.b64encode(login.encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = MOST_REDIRECTS
    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302  # Python 3.10 has none

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urlsplit(newurl).scheme not in (("https",) if req.type == "https" else ("https", "http")):
            reason = f"it leads from {req.type}:// to {shown(newurl)}{REFUSED}"
            raise urllib.error.HTTPError(req.full_url, code, reason, headers, fp)
        return super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)


def _opener():
    """urllib's opener without the handlers of ftp:// and local files, to which a server could redirect."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def _refusal(url, error):
    """The error for a server's refusal."""
    status = f"{error.code} {http.client.responses.get(error.code, '')}".strip()
    if error.code in PASSING:
        return CutError(f"the server answers {status}")
    if 300 <= error.code < 400:
        text = f"the server answers {status}, and redirects nowhere"
        if error.msg.endswith(REFUSED):
            text = error.msg
        elif "infinite loop" in error.msg:
            text = f"more than {MOST_REDIRECTS} redirects, or a circle of them"
        elif "not allowed" in error.msg:
            text = f"it leads to an address of another kind{REFUSED}"
        return OSError(f"{shown(url)}: {text}")
    if error.code in (404, 410):
        return FileNotFoundError(f"{shown(url)}: no such file on the server ({status})")
    if error.code in (401, 403):
        return PermissionError(f"{shown(url)}: the server does not give it to everybody ({status})")
    return OSError(f"{shown(url)}: the server answers {status}")


def _unreachable(url, reason):
    """The error where there is no connection."""
    host = urlsplit(url).hostname
    if isinstance(reason, socket.gaierror):
        text = f"no network, or no host {host}"
    elif isinstance(reason, ssl.SSLError):
        text = f"no safe connection to {host}: {getattr(reason, 'verify_message', '') or _words(reason)}"
    elif isinstance(reason, TimeoutError):
        text = f"no network, or {host} is down: no answer within {TIMEOUT} s"
    elif isinstance(reason, ConnectionRefusedError):
        text = f"{host} refuses the connection: no server is there, or no network"
    elif isinstance(reason, OSError):
        text = f"no network ({_words(reason)})"
    else:
        return ValueError(f"{shown(url)}: an address that cannot be read ({_words(reason)})")
    return UnreachableError(text)


def _words(error):
    """An error's text in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())

"""What may be opened by URL, and how: http, https, hf (Hugging Face), gs and s3, and no other scheme.

Only s3 goes through fsspec. Its file systems for http, hf and gs cannot keep what is promised here: no step from https
to http, credentials that stay at their host, a resumed range of the same version alone, an end to a server that
trickles. So those are plain HTTP of the standard library. Every failure is either `Again`, which another try
may mend, or a UserError, which it will not. No message shows what a URL may hide: user, password, query.
"""

import base64
import http.client
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import fsspec

from mmfm.config import UserError
from mmfm.data.urls import check_scheme, shown
from mmfm.preprocessing.file_formats import kind_of

BLOCK = 1 << 24  # bytes that one request to s3 brings
LEAST = 1_000  # bytes in a second, over timeout_s seconds
PEEKED = 512  # bytes in which a page shows that it is one
ABSENT, DENIED, LATER = (404, 410), (401, 403), (408, 425, 429)  # HTTP statuses; 5xx are for later too
ACCESS = {
    "s3": "the variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or FSSPEC_S3_ANON=true where none are needed",
    "gs": "the variable GOOGLE_APPLICATION_CREDENTIALS",
    "hf": "the variable HF_TOKEN",
}
INSTALL = "pip install 'mmfm[remote]'"


class Again(OSError):
    """What may succeed at another try, `after_s` seconds later if the server said when."""

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


class Absent(UserError):
    """Nothing is there under that URL."""


class Denied(UserError):
    """What lies under that URL, if anything, may not be read."""


class Answer(NamedTuple):
    """A server's bytes from `start` on, of `size` in all (None: not said); `read` gives b"" at their end.

    `version` changes when the file does ("": not said).
    """

    start: int
    size: int | None
    version: str
    read: Callable[[int], bytes]


# Requests


@contextmanager
def request(url: str, start: int, size: int | None, version: str, timeout_s: float) -> Iterator[Answer]:
    """The bytes of a URL from `start` on, if the server can and the file is still of that version; else from 0 on."""
    with (_s3 if check_scheme(url) == "s3" else _http)(url, start, size, version, timeout_s) as answer:
        yield answer


class _Redirect(urllib.request.HTTPRedirectHandler):
    """To http and https alone, and never from the second to the first. Credentials stay at their own host."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("https", old.scheme):
            raise UserError(f"{shown(req.full_url)} leads to {shown(newurl)}, not opened; give the final URL")
        again = super().redirect_request(req, fp, code, msg, headers, newurl)
        if again is not None and (new.scheme, new.netloc) == (old.scheme, old.netloc) and req.has_header(LOGIN):
            again.add_unredirected_header(LOGIN, req.get_header(LOGIN))
        return again


LOGIN = "Authorization"


@contextmanager
def _http(url: str, start: int, size: int | None, version: str, timeout_s: float) -> Iterator[Answer]:
    asked = _asked(url)
    asked.add_header("Accept-Encoding", "identity")
    if start:
        asked.add_header("Range", f"bytes={start}-")
        if version:
            asked.add_header("If-Range", version)
    with _opened(url, asked, timeout_s) as response:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        length, tag = response.headers.get("Content-Length", ""), response.headers.get("ETag", "")
        ranged = span if response.status == 206 else None
        whole = int(ranged[2]) if ranged else int(length) if length.isdigit() else None
        weak = tag.startswith("W/")  # says that two files mean the same, not that they are
        pace = Pace(timeout_s)

        def read(count: int) -> bytes:
            try:
                return pace.took(response.read1(count))
            except (OSError, http.client.HTTPException) as why:
                raise why if isinstance(why, Again) else _again(why, timeout_s) from None

        if response.status == 200:
            _refuse_page(url, response, timeout_s)
        yield Answer(int(ranged[1]) if ranged else 0, whole, "" if weak else tag, read)


class Pace:
    """Of what a server sends: `timeout_s` seconds that bring less than LEAST bytes each are as good as none."""

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.timeout_s, self.clock = timeout_s, clock
        self.since, self.came = clock(), 0

    def took(self, data: bytes) -> bytes:
        """The data. Raises Again where too little came of late; the end of all is no trickle."""
        self.came += len(data)
        now = self.clock()
        if data and now - self.since >= self.timeout_s:
            if self.came < LEAST * (now - self.since):
                raise Again(f"only {self.came} bytes came in {now - self.since:.3g} s")
            self.since, self.came = now, 0
        return data


def _refuse_page(url: str, response: Any, timeout_s: float) -> None:
    """A page to log in, or of a proxy, that is answered as if it were the file."""
    try:
        kind = kind_of(response.peek(PEEKED))
    except (OSError, http.client.HTTPException) as why:
        raise _again(why, timeout_s) from None
    if kind is not None and "HTML" in kind.name:
        access = ACCESS.get(check_scheme(url), "a URL that holds them")
        told = f"{shown(url)} is answered with {kind.name} and not with the file, such as one to log in"
        raise UserError(f"{told}; check the URL in a browser, or give credentials by {access}")


class _Plain(http.client.HTTPConnection):
    """Whose server has `timeout` seconds for all headers of its answer: each byte of them alone would begin anew."""

    def getresponse(self) -> http.client.HTTPResponse:
        return _in_time(self, super().getresponse)


class _Secure(http.client.HTTPSConnection):
    def getresponse(self) -> http.client.HTTPResponse:
        return _in_time(self, super().getresponse)


def _in_time(connection: http.client.HTTPConnection, answer: Callable[[], Any]) -> Any:
    late, sock = threading.Event(), connection.sock

    def hang_up() -> None:
        late.set()
        with suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # the thread that reads must not find TLS half closed

    timer = threading.Timer(connection.timeout or 0.0, hang_up)
    timer.daemon = True
    timer.start()
    try:
        found = answer()
    except (OSError, http.client.HTTPException):
        if late.is_set():
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()
    if late.is_set():  # headers that were cut off look like a few whole ones
        raise TimeoutError
    return found


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: Any) -> Any:
        return self.do_open(_Plain, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: Any) -> Any:
        return self.do_open(_Secure, req)


def _opened(url: str, asked: urllib.request.Request, timeout_s: float) -> Any:
    try:
        return urllib.request.build_opener(_Redirect, _Http, _Https).open(asked, timeout=timeout_s)
    except UserError:
        raise
    except urllib.error.HTTPError as why:
        with why:
            refuse(url, why.code, why.headers.get("Retry-After", ""))
    except (ValueError, http.client.InvalidURL):
        raise UserError(f"{shown(url)} is no URL that can be asked for; check its letters and its port") from None
    except (OSError, http.client.HTTPException) as why:
        raise _again(why, timeout_s) from None


def _again(why: Exception, timeout_s: float) -> Again:
    reason = why.reason if isinstance(why, urllib.error.URLError) else why
    if isinstance(reason, TimeoutError):
        return Again(f"no byte came for {timeout_s} s")
    return Again(" ".join(f"{type(reason).__name__}: {reason}".split())[:200])


def refuse(url: str, status: int, after: str = "") -> NoReturn:
    """Raise what an HTTP status that is no success means."""
    if status == 416:
        raise Again("the server's copy became shorter")
    if status in LATER or status >= 500:
        raise Again(f"the server answered {status}", float(after) if after.isdigit() else 0.0)
    if status in ABSENT:
        raise Absent(f"there is no {shown(url)} (the server answered {status}); check the URL")
    if status in DENIED:
        access = ACCESS.get(check_scheme(url), "a URL that holds them")
        raise Denied(f"{shown(url)} may not be read (the server answered {status}); give credentials by {access}")
    if status < 400:
        raise UserError(f"{shown(url)} leads elsewhere (the server answered {status}), not opened; give the final URL")
    raise UserError(f"{shown(url)} cannot be read (the server answered {status}); check the URL")


def _asked(url: str) -> urllib.request.Request:
    """The request, with credentials that no redirect takes to another host."""
    scheme, bearer = check_scheme(url), ""
    if scheme == "hf":
        url, bearer = _hugging_face(url), _hugging_face_token()
    elif scheme == "gs":
        url, bearer = _google(url), _google_token()()
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    path = quote(parts.path, safe="/%:@!$&'()*+,;=~")
    asked = urllib.request.Request(urlunsplit(parts._replace(netloc=host, path=path, fragment="")))
    if at:
        asked.add_unredirected_header(LOGIN, f"Basic {base64.b64encode(unquote(login).encode()).decode()}")
    elif bearer:
        asked.add_unredirected_header(LOGIN, f"Bearer {bearer}")
    return asked


# Stores with a scheme of their own


def _hugging_face(url: str) -> str:
    """hf://datasets/OWNER/NAME[@REVISION]/PATH, or without `datasets/` for a model, as https."""
    match = re.fullmatch(r"hf://((?:datasets/|spaces/)?)([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)", url, re.IGNORECASE)
    if not match:
        raise UserError(f"{shown(url)!r} is not of the form hf://datasets/OWNER/NAME@REVISION/PATH")
    kind, name, revision, path = match.groups()
    server = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return f"{server}/{kind.lower()}{name}/resolve/{quote(unquote(revision or 'main'), safe='')}/{path}"


def _hugging_face_token() -> str:
    """Where huggingface_hub looks: the environment, else the file that logging in writes."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    file = Path(os.environ.get("HF_TOKEN_PATH", home / "token"))
    saved = file.read_text("utf-8") if file.is_file() else ""
    return (os.environ.get("HF_TOKEN") or saved).strip()


def _google(url: str) -> str:
    """gs://BUCKET/NAME as the https of Cloud Storage's XML interface."""
    server = os.environ.get("STORAGE_EMULATOR_HOST", "https://storage.googleapis.com").rstrip("/")
    return f"{server}/{url.partition('://')[2]}"


@cache
def _google_token() -> Callable[[], str]:
    """What gives a token of the machine's default credentials; none where there are none, as for a public bucket."""
    try:
        import google.auth
        import google.auth.transport.requests as transport
        from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, TransportError
    except ImportError:
        raise UserError(f"gs:// needs packages that are not installed: {INSTALL}") from None
    try:
        login = google.auth.default(scopes=("https://www.googleapis.com/auth/devstorage.read_only",))[0]
    except DefaultCredentialsError:
        return lambda: ""

    def token() -> str:
        try:
            if not login.valid:
                login.refresh(transport.Request())
        except TransportError as why:
            raise Again(" ".join(f"TransportError: {why}".split())[:200]) from None
        except GoogleAuthError as why:
            raise UserError(f"gs://: {' '.join(str(why).split())[:200]}; set {ACCESS['gs']}") from None
        return login.token or ""

    return token


def _s3(url: str, start: int, size: int | None, version: str, timeout_s: float) -> AbstractContextManager[Answer]:
    """By ranges, each a request of its own."""
    path, call = url.partition("://")[2], _s3_calls(url, timeout_s)
    about = call("info", path) if size is None else {"size": size}
    whole, tag = int(about["size"]), str(about.get("ETag", ""))
    at = start if version == tag else 0

    def read(_: int) -> bytes:
        nonlocal at
        data = call("cat_file", path, start=at, end=min(at + BLOCK, whole)) if at < whole else b""
        at += len(data)
        return data

    return nullcontext(Answer(at, whole, tag, read))


def _s3_calls(url: str, timeout_s: float) -> Callable[..., Any]:
    """call(method, ...) of fsspec's file system. Its own tries are switched off: ours count, wait and say why."""
    limits = {"connect_timeout": timeout_s, "read_timeout": timeout_s, "retries": {"max_attempts": 0}}
    try:
        system = fsspec.filesystem("s3", config_kwargs=limits, use_listings_cache=False)
    except ImportError:
        raise UserError(f"s3:// needs packages that are not installed: {INSTALL}") from None
    system.retries = 1

    def call(method: str, *arguments: Any, **options: Any) -> Any:
        try:
            return getattr(system, method)(*arguments, **options)
        except FileNotFoundError:
            refuse(url, 404)
        except PermissionError:
            refuse(url, 403)
        except Exception as why:  # the libraries' errors share no base; what does not pass ends after the tries
            if "Credentials" in type(why).__name__:
                refuse(url, 401)
            raise _again(why, timeout_s) from None

    return call

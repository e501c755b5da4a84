"""Requests to a server: the `openai` client's connections, time-outs, retries and back-off, for any path.

It retries 408, 409, 429, 5xx, lost connections and time-outs, after what ``Retry-After`` says. The API key is
read from the environment here, sent, and kept from every message.
"""

import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from stages.errors import StageError
from stages.teacher.endpoint.wording import AnswerError
from stages.teacher.params import EndpointParams

_FOR_NOBODY = (301, 302, 303, 307, 308, 401, 402, 403, 404, 405)
"""What a server answers to every request where it answers it to one: address, key or model are wrong."""
_BUSY = (408, 409, 429)
"""What it answers, like 5xx, to a request that may be sent again."""
_LONGEST_WAIT = 120
"""Seconds after which the client asks again, at most; it does not wait for longer."""


class Transport:
    """A server that can be asked while an event loop runs."""

    def __init__(self, how: EndpointParams) -> None:
        """Make a client; nothing is sent yet.

        Raises:
            StageError: The client is not installed, or the key's variable is not set.
        """
        try:
            import openai  # slow import, and an optional dependency
        except ImportError:
            raise StageError(
                "teachers behind an endpoint need the openai client; install it with: "
                "pip install -c constraints.txt -e '.[endpoint]'"
            ) from None
        self._openai: Any = openai
        self._url, self._key = how.url, ""
        host = urlsplit(how.url).netloc
        # What is for this machine goes through no proxy, whatever the environment says.
        direct = {} if foreign_host(how) else {f"all://{host}": None}
        # What the client would add from the environment is for one host alone.
        unsent = [
            "OpenAI-Organization",
            "OpenAI-Project",
            *(["Authorization"] if not how.key_variable else []),
        ]
        self._options: Any = {"headers": dict.fromkeys(unsent, openai.Omit())}
        if how.key_variable is not None:
            self._key = os.environ.get(how.key_variable, "").strip()
            if not self._key:
                raise StageError(
                    f"the environment variable {how.key_variable}, which is to hold the API key, is not set"
                )
            if not (self._key.isascii() and self._key.isprintable()):
                raise StageError(
                    f"the environment variable {how.key_variable} holds characters that no API key has; set "
                    "it again"
                )
        self._client = openai.AsyncOpenAI(
            api_key=self._key or "none",  # else it takes one from the environment
            base_url=how.url,
            max_retries=how.retries,
            timeout=how.timeout,
            # Texts go to the host that is named, and to none that it points to.
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, mounts=direct),
        )

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """Ask, again and again if need be; gives the JSON of the answer, or its text where it is none.

        Raises:
            AnswerError: No answer came, or it is a refusal of this request, or broken JSON.
            StageError: The server would refuse any request.
        """
        return await self._sent(
            path, self._client.post(path, cast_to=object, body=body, options=self._options)
        )

    async def get(self, path: str) -> Any:
        """Ask for what a server says of itself.

        Raises:
            AnswerError: As `post`, and where there is no such path.
        """
        try:
            return await self._sent(path, self._client.get(path, cast_to=object, options=self._options))
        except StageError as error:
            raise AnswerError(str(error)) from error

    async def _sent(self, path: str, request: Any) -> Any:
        try:
            return await request
        except self._openai.APIStatusError as error:
            said = f"{self._url}{path} answers {error.status_code}: {self._quoted(error.response.text)}"
            wait = _seconds(error.response.headers.get("retry-after", ""))
            if (error.status_code in _BUSY or error.status_code >= 500) and wait > _LONGEST_WAIT:
                raise StageError(f"{said}; run this again in {wait:,.0f} s, as it asks") from None
            if error.status_code in _FOR_NOBODY:
                raise StageError(
                    f"{said}; check teachers.<language>.endpoint: url, model, key_variable"
                ) from None
            raise AnswerError(said) from None
        except self._openai.APITimeoutError:
            raise AnswerError(f"{self._url}{path} did not answer in time") from None
        except self._openai.APIConnectionError as error:
            cause = self._quoted(str(error.__cause__ or error))
            raise AnswerError(f"cannot reach {self._url}: {cause}; is the server running?") from None
        except (ValueError, RecursionError) as error:
            raise AnswerError(f"the server sent broken JSON: {self._quoted(str(error))}") from None

    def _quoted(self, text: str) -> str:
        """Give the beginning of what a server says, without the key, which some repeat."""
        return self.without_key(" ".join(text.split()))[:200]

    def without_key(self, text: str) -> str:
        """Give a text without the key, and without a beginning of it, which is left where a text was cut."""
        in_json = json.dumps(self._key)[1:-1]
        keys = {self._key, in_json, in_json.replace("/", "\\/")}
        secret = {key[:n] for key in keys for n in range(min(8, len(key)) or 1, len(key) + 1)}
        for part in sorted(secret, key=len, reverse=True):
            text = text.replace(part, "***")
        return text

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()


def _seconds(retry_after: str) -> float:
    """Read what ``Retry-After`` says, a number of seconds or a date; 0 where it says neither."""
    with suppress(ValueError):
        return float(retry_after)
    with suppress(ValueError):
        date = parsedate_to_datetime(retry_after)
        return (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return 0.0


def foreign_host(how: EndpointParams) -> str | None:
    """Give the host that texts are sent to; None: it is this machine."""
    host = urlsplit(how.url).hostname or ""
    try:
        is_here = ip_address(host).is_loopback
    except ValueError:  # it is a name, which may begin with 127
        is_here = host == "localhost"
    return None if is_here else host

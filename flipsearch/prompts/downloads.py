"""Fetches prompt files that are not here: an https address, a file or a dataset of the Hugging Face hub.

Only what the user typed, or the table of known sets names, is fetched; no file names an address. A download is bounded
in size and time, follows redirects to https alone, and is kept in the user's cache.
"""

import hashlib
import os
import re
import time
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx2
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from flipsearch.core.errors import PromptError, near_names, one_line
from flipsearch.core.files import atomic_write, cache_folder

MAX_BYTES = 2**30
DEADLINE_S = 600.0
STALL_S = 30.0
"""Longest wait for the next bytes."""
MAX_REDIRECTS = 5
HUB = "hf://datasets/"
CONVERTED = "refs/convert/parquet"
"""Where the hub keeps every public dataset as parquet, CONFIG/SPLIT/NNNN.parquet."""
_DATASET = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?:/(?P<config>[^/]+))?(?:/(?P<split>[^/]+))?")


def prompt_cache() -> Path:
    """Return the folder of fetched prompt files."""
    return cache_folder("prompts")


def fetch(url: str, keep_as: Path | None = None, sha256: str = "", client: httpx2.Client | None = None) -> Path:
    """Return the local copy of an https file; with `keep_as` it is fetched once.

    Raises PromptError for an address that is not https, a file of another hash, one that is too long or takes too
    long, and where there is no network.
    """
    if keep_as is not None and keep_as.is_file() and (not sha256 or file_hash(keep_as) == sha256):
        return keep_as
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise PromptError(f"cannot fetch {url}: HF_HUB_OFFLINE is set; unset it, or download the file yourself.")
    ending = Path(urlsplit(url).path).name[-60:]
    target = keep_as or prompt_cache() / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{ending}"
    with atomic_write(target, PromptError) as partial:
        try:
            with client or httpx2.Client(timeout=httpx2.Timeout(STALL_S)) as session:
                _download(session, url, partial)
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            raise PromptError(f"cannot fetch {url}: {one_line(error)}; is there a network?") from error
        if sha256 and (got := file_hash(partial)) != sha256:
            raise PromptError(f"{url} has changed: its sha256 is {got}, expected {sha256}; download and check it.")
    return target


def _download(session: httpx2.Client, url: str, target: Path) -> None:
    end = time.monotonic() + DEADLINE_S
    address = url
    for _ in range(MAX_REDIRECTS + 1):
        if urlsplit(address).scheme != "https":
            raise PromptError(f"cannot fetch {url}: it leads to '{address[:200]}'; only https is followed.")
        with session.stream("GET", address, follow_redirects=False) as response:
            if response.is_redirect:
                address = urljoin(address, response.headers.get("location", ""))
                continue
            if not response.is_success:
                raise PromptError(f"cannot fetch {url}: the server answers {response.status_code}.")
            num_bytes = 0
            with target.open("wb") as file:
                for block in response.iter_bytes():
                    num_bytes += len(block)
                    if num_bytes > MAX_BYTES:
                        raise PromptError(f"{url} is longer than {MAX_BYTES:,} bytes: download it yourself.")
                    if time.monotonic() > end:
                        raise PromptError(f"{url} takes longer than {DEADLINE_S:.0f} s: download it yourself.")
                    file.write(block)
            return
    raise PromptError(f"cannot fetch {url}: more than {MAX_REDIRECTS} redirects.")


def file_hash(file: Path) -> str:
    """Return the sha256 of a file in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hub_file(address: str) -> Path:
    """Return the local copy of hf://datasets/ORG/NAME[@REVISION]/FILE, from the hub's own cache if it is there."""
    org, _, rest = address.removeprefix(HUB).partition("/")
    name, _, file = rest.partition("/")
    name, _, revision = name.partition("@")
    if not (address.startswith(HUB) and org and name and file):
        raise PromptError(f"cannot read '{address}': expected hf://datasets/ORG/NAME/FILE.")
    return _from_hub(address, f"{org}/{name}", file, revision or None)


def is_dataset(spec: str) -> bool:
    """Return whether a spec has the form ORG/NAME[/CONFIG[/SPLIT]] and is no local path."""
    return bool(_DATASET.fullmatch(spec)) and not spec.startswith((".", "~")) and not is_here(spec)


def is_here(path: str) -> bool:
    """Return whether a local file or folder has this name; False for what can be no name."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long, or with NUL
        return False


def hub_dataset(spec: str) -> tuple[str, list[Path]]:
    """Return ORG/NAME/CONFIG/SPLIT of ORG/NAME[/CONFIG[/SPLIT]], and its parquet files.

    Raises PromptError with the names to choose from.
    """
    match = _DATASET.fullmatch(spec)
    assert match is not None  # is_dataset
    dataset = match["id"]
    try:
        listed = HfApi().list_repo_files(dataset, repo_type="dataset", revision=CONVERTED)
    except Exception as error:
        raise _hub_error(spec, dataset, error) from error
    files = [name for name in listed if name.endswith(".parquet") and name.count("/") == 2]
    config = _choose(spec, "config", match["config"], [name.split("/")[0] for name in files], "default")
    files = [name for name in files if name.split("/")[0] == config]
    split = _choose(f"{dataset}/{config}", "split", match["split"], [name.split("/")[1] for name in files], "train")
    chosen = sorted(name for name in files if name.split("/")[1] == split)
    return f"{dataset}/{config}/{split}", [_from_hub(spec, dataset, name, CONVERTED) for name in chosen]


def _choose(spec: str, what: str, given: str | None, all_names: list[str], default: str) -> str:
    names = sorted(set(all_names))
    if given in names or (given is None and names and (len(names) == 1 or default in names)):
        return given or (names[0] if len(names) == 1 else default)
    if given is None:
        todo = f"name one of {', '.join(names[:20])}: {spec}/{what.upper()}" if names else "it has no tables"
        raise PromptError(f"the hub dataset '{spec}' has {len(names)} {what}s; {todo}.")
    raise PromptError(f"'{spec}' has no {what} '{given}'.{near_names(given, names)} It has: {', '.join(names[:20])}.")


def _from_hub(spec: str, repo: str, file: str, revision: str | None) -> Path:
    try:
        return Path(hf_hub_download(repo, file, repo_type="dataset", revision=revision))
    except Exception as error:
        raise _hub_error(spec, repo, error) from error


# The hub's client raises errors of several libraries (HTTP, its own, OSError); to the user they are one.
def _hub_error(spec: str, repo: str, error: Exception) -> PromptError:
    if isinstance(error, GatedRepoError):
        return PromptError(
            f"'{spec}' is gated: accept its terms on the hub's page of {repo}, then set HF_TOKEN to your token."
        )
    if isinstance(error, RepositoryNotFoundError):
        return PromptError(
            f"there is no file '{spec}', and no dataset {repo} on the Hugging Face hub that you may read."
        )
    return PromptError(f"cannot read '{spec}' from the Hugging Face hub: {one_line(error)}")

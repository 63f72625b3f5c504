"""Uploads an exported folder to the Hugging Face hub, or to the server that HF_ENDPOINT names."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tolktrain.errors import UserError

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 401, 403, 404


class Hub:
    """A repository of models on the hub."""

    def __init__(self, repository: str, public: bool) -> None:
        """Check the token and the repository before anything is written.

        Args:
            repository: OWNER/NAME.
            public: whether everybody may read it.

        Raises:
            UserError: the name is wrong, there is no valid token, the hub cannot be reached, or the repository exists
                and is public, but `public` is false.
        """
        if not _REPOSITORY.fullmatch(repository):
            raise UserError(
                f"--push {repository!r:.100} is no repository; expected OWNER/NAME, such as me/smoltolk-150m"
            )
        import huggingface_hub  # an HTTP stack that other exports do not need

        self._api = huggingface_hub.HfApi(library_name="tolktrain")
        self.repository = repository
        self.public = public
        if huggingface_hub.get_token() is None:
            raise UserError(
                f"--push {repository}: there is no token; create one that may write at the hub (Settings, Access"
                " Tokens), and give it with `hf auth login` or in the variable HF_TOKEN"
            )
        self._call(self._api.whoami)
        if not public and self._is_public():
            raise UserError(
                f"--push {repository}: the repository exists and is public, so everybody could read the weights; give"
                " --public if they may, or name another repository"
            )

    def upload(self, folder: Path, message: str, report: Callable[[str], None]) -> None:
        """Create the repository if it does not exist, and upload a folder in one commit.

        Raises UserError if the hub refuses it, or cannot be reached; the folder is complete and can be uploaded later.
        """

        def upload() -> Any:
            self._api.create_repo(self.repository, private=not self.public, exist_ok=True)
            return self._api.upload_folder(
                repo_id=self.repository, folder_path=str(folder), commit_message=message, ignore_patterns=[".tmp-*"]
            )

        try:
            commit = self._call(upload)
        except UserError as error:
            later = f"{folder} is complete: upload it with `hf upload {self.repository} {folder}`"
            raise UserError(f"{error}; {later}", by_machine=error.by_machine) from error
        report(f"uploaded to {self.repository} ({'public' if self.public else 'private'}): {commit}")

    def _is_public(self) -> bool:
        from huggingface_hub.errors import RepositoryNotFoundError

        def visible() -> bool:
            try:
                return not self._api.repo_info(self.repository).private
            except RepositoryNotFoundError:
                return False

        return bool(self._call(visible))

    def _call(self, request: Callable[[], Any]) -> Any:
        """Send requests; their failures become messages that say what to do."""
        try:
            return request()
        except Exception as error:  # of either HTTP library that versions of the client use
            raise self._problem(error) from error

    def _problem(self, error: Exception) -> UserError:
        status = getattr(getattr(error, "response", None), "status_code", None)
        begin = f"--push {self.repository}: "
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        if status == _UNAUTHORIZED:
            return UserError(f"{begin}the hub does not accept the token (HTTP 401); log in again with `hf auth login`")
        if status in (_FORBIDDEN, _NOT_FOUND):
            return UserError(
                f"{begin}the token may not write there (HTTP {status}); create one with write permission for"
                f" {self.repository.split('/')[0]}, or name a repository of your own"
            )
        if status is None:
            return UserError(
                f"{begin}the hub cannot be reached ({reason}); check the network, HF_ENDPOINT and HF_HUB_OFFLINE",
                by_machine=True,
            )
        return UserError(f"{begin}the hub refuses it (HTTP {status}: {reason})", by_machine=status >= 500)

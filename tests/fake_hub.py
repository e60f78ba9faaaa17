"""The Hugging Face Hub without a network: what is pushed to it can be looked at, and be downloaded again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

TOKEN = "hf_secretsecretsecret"
COMMIT = 40 * "a"


class FakeHub:
    """The methods of HfApi that are used; keeps what is sent."""

    private: ClassVar[bool] = False
    error: ClassVar[Exception | None] = None
    calls: ClassVar[list[tuple[str, str, dict[str, Any]]]] = []

    def create_repo(self, repo: str, **options: Any) -> str:
        if self.error is not None:
            raise self.error
        self.calls.append(("create_repo", repo, options))
        return f"https://huggingface.co/{repo}"

    def repo_info(self, repo: str, **options: Any) -> SimpleNamespace:
        return SimpleNamespace(private=self.private)

    def create_commit(self, repo: str, operations: list[Any], **options: Any) -> None:
        files = {one.path_in_repo: one.path_or_fileobj for one in operations}
        self.calls.append(("create_commit", repo, files))

    @classmethod
    def write_last_commit(cls, folder: Path) -> None:
        """Write the files of the last commit to a folder."""
        for name, content in cls.calls[-1][2].items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else Path(content).read_bytes())

    @classmethod
    def fill_cache(cls, cache: Path) -> None:
        """Write the last commit as a download of its repository leaves it, for huggingface_hub and transformers."""
        repository = cache / f"models--{cls.calls[-1][1].replace('/', '--')}"
        cls.write_last_commit(repository / "snapshots" / COMMIT)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)

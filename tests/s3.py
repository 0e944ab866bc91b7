"""A real S3 service on this machine, and buckets of it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import fs


@contextmanager
def serving() -> Iterator[str]:
    """The address of the service, on loopback, while the block runs."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def variables(endpoint: str) -> dict[str, str]:
    """What points `s3://` at the service."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_REGION": "us-east-1",
    }


class Bucket:
    """A new bucket."""

    def __init__(self, endpoint: str, name: str) -> None:
        self.name = name.replace("_", "-")
        self.uri = f"s3://{self.name}"
        self.endpoint = endpoint
        self._s3 = fs.S3FileSystem(
            endpoint_override=endpoint,
            region="us-east-1",
            access_key="anyone",
            secret_key="anything",
            allow_bucket_creation=True,
        )
        self._s3.create_dir(self.name)

    def upload(self, directory: Path, key: str) -> str:
        fs.copy_files(str(directory), f"{self.name}/{key}", fs.LocalFileSystem(), self._s3)
        return f"{self.uri}/{key}"

    def write(self, key: str, text: str = "kept") -> None:
        with self._s3.open_output_stream(f"{self.name}/{key}") as stream:
            stream.write(text.encode())

    def list_keys(self) -> list[str]:
        found = self._s3.get_file_info(fs.FileSelector(self.name, recursive=True))
        return sorted(info.path.removeprefix(f"{self.name}/") for info in found)

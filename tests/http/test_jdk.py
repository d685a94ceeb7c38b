"""The JDK's HTTP client offers HTTP/2 on every plain POST; Spring AI and LangChain4j use it."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import RunningGateway

pytestmark = pytest.mark.process

PROGRAM = """
import java.net.URI;
import java.net.http.*;
import java.net.http.HttpRequest.BodyPublishers;

public class Ask {
    public static void main(String[] arguments) throws Exception {
        var client = HttpClient.newHttpClient();
        var one = BodyPublishers.ofString(arguments[1]);
        var chunked = BodyPublishers.fromPublisher(one);
        var long_ = BodyPublishers.ofString(arguments[1] + " ".repeat(3_000_000));
        for (var body : new HttpRequest.BodyPublisher[] {one, chunked, long_}) {
            var request = HttpRequest.newBuilder(URI.create(arguments[0]))
                .header("content-type", "application/json").POST(body).build();
            var answer = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(answer.statusCode() + " " + answer.body());
        }
    }
}
"""


def test_every_post_of_the_jdk_is_answered(fake: RunningGateway, tmp_path: Path) -> None:
    """With its defaults, a request of one piece, one of chunks and a long one get their vectors."""
    java = shutil.which("java")
    if java is None:
        if os.environ.get("CI"):
            pytest.fail("default-jdk-headless is to be installed")
        pytest.skip("there is no Java")
    source = tmp_path / "Ask.java"
    source.write_text(PROGRAM)
    command = [java, str(source), fake.url + "/v1/embeddings", '{"model":"fake","input":"w1"}']
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stderr
    assert all(line.startswith('200 {"object":"list"') for line in lines), lines

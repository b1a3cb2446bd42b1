from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bertfast.bench.gate import Limits, verdict_on
from bertfast.bench.html import write_html
from bertfast.bench.results import Results
from tests.bench.made import UNLABELLED, failed, measured, offline, results, served, shaped

FULL = results(
    measured("torch", server=(served(9.0, 4.0), served(20.0, 40.0)), grid=(shaped(1, 8, 0.01), shaped(4, 8, 0.02))),
    measured("a <b>&'\" $x$", 200.0, lost=9, gained=3, offline_given=(offline(150.0),), grid=(shaped(4, 8, 0.01),)),
    measured("peer", 150.0, system="peer", lost=0, gained=0, libraries={"theirs": "1.2"}, warnings=("<i>busy</i>",)),
    failed("broken", "OSError: <script>alert(1)</script>"),
    bound_p99_ms=10.0,
    data="<dev>.tsv",
    command="bertfast bench '<x>'",
    commit="1a2b3c",
)


def page_of(run: Results, folder: Path) -> str:
    write_html(run, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


class Tags(HTMLParser):
    """The elements of a page with their attributes; one that is not closed in its turn is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def tags_of(page: str) -> list[tuple[str, dict[str, Any]]]:
    parser = Tags()
    parser.feed(page)
    assert parser.open == []
    return parser.seen


def test_the_page_asks_for_nothing_and_runs_nothing(tmp_path: Path) -> None:
    page = page_of(FULL, tmp_path)
    for tag, attributes in tags_of(page):
        assert tag not in ("script", "link", "img", "iframe", "object", "image")
        assert not set(attributes) & {"src", "srcset", "onload", "onclick"}
        assert all(attributes.get(name, "#").startswith("#") for name in ("href", "xlink:href"))
    assert set(re.findall(r"url\(([^)]{2})", page)) <= {"#p"}
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_names_and_messages_of_others_are_text(tmp_path: Path) -> None:
    page = page_of(FULL.model_copy(update={"verdict": verdict_on(FULL, Limits(max_drop=0.1))}), tmp_path)
    assert "a &lt;b&gt;&amp;&#x27;&quot; $x$" in page
    for raw in ("<script>", "a <b>", "<dev>", "<i>busy", "'<x>'"):
        assert raw not in page
    assert "OSError: &lt;script&gt;" in page


@pytest.mark.parametrize(("count", "shown"), [(5, True), (6, False)])
def test_many_warnings_are_folded(count: int, shown: bool, tmp_path: Path) -> None:
    run = results(*(measured(f"c{number}", warnings=("busy",)) for number in range(count)))
    opening = f"<details{' open' if shown else ''}><summary>What makes these figures doubtful: {count}</summary>"
    assert opening in page_of(run, tmp_path)


def test_the_pictures_are_whole_and_take_the_page_s_ink(tmp_path: Path) -> None:
    pictures = re.findall(r"<svg.*?</svg>", page_of(FULL, tmp_path), re.DOTALL)
    assert len(pictures) == 5  # the trade-off twice, latencies, lengths, rates
    for picture in pictures:
        ElementTree.fromstring(picture)
        assert "currentColor" in picture
        assert "#010203" not in picture


def test_every_part_of_a_run_is_shown(tmp_path: Path) -> None:
    page = page_of(FULL, tmp_path)
    parts = ("Accuracy against throughput", "Latency", "Where the time goes", "Lengths and padding", "Serving")
    for part in (*parts, "Batches of one shape", "Details", "Environment", "Peer peer"):
        assert f">{part}<" in page
    assert "style='width:25.00%' title='tokenize: 2,500 µs'" in page
    assert "<td class=best>400</td>" in page  # 4 sequences in 0.01 s
    assert "<td>-</td>" in page
    assert "<td>9/3<small>(p 0.15)</small></td>" in page
    assert "<dt>Commit</dt><dd>1a2b3c</dd>" in page
    assert "20.0%" in page  # of 25 tokens 5 are padding


@pytest.mark.parametrize(("limit", "state"), [(5.0, "yes"), (0.1, "no")])
def test_the_verdict_stands_on_top(limit: float, state: str, tmp_path: Path) -> None:
    run = results(measured("torch"), measured("b", lost=9, gained=3, artefact_sha256="b" * 64))
    verdict = verdict_on(run, Limits(max_drop=limit))
    page = page_of(run.model_copy(update={"verdict": verdict}), tmp_path)
    assert page.index(f"class='verdict {state}'") < page.index("<table>")
    assert "class='verdict" not in page_of(run, tmp_path)


@pytest.mark.parametrize(
    "run",
    [
        results(failed("torch")),
        results(measured("torch", offline=(), latency_ms=(), real_tokens=None, padded_tokens={}), lengths=()),
        results(measured("torch"), lengths=(0, 5)),
        results(measured("torch"), lengths=(*[0] * 500, 5)),
        results(measured("a", drop_interval=None), measured("b", lost=1, gained=0, drop_interval=None)),
        results(*(measured(str(i), 100.0 + i) for i in range(30))),
    ],
    ids=["nothing worked", "nothing measured", "one length", "one long length", "no interval", "a crowd"],
)
def test_a_run_of_any_kind_has_a_page(run: Results, tmp_path: Path) -> None:
    assert tags_of(page_of(run, tmp_path))


def test_without_labels_latency_stands_where_the_metric_would(tmp_path: Path) -> None:
    run = results(measured("torch", metrics={}), measured("b", 300.0, metrics={}), **UNLABELLED)
    page = page_of(run, tmp_path)
    assert ">Latency against throughput<" in page
    assert "p99 ms, one request at a time" in page
    assert "The file has no labels: speed only." in page

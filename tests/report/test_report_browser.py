"""The page in a browser, opened from disk."""

import pytest

from selfflow.report.study import open_study
from selfflow.report.write import write_report
from tests.report.browser import CHROMIUM, browser
from tests.report.folders import add_samples, make_sweep

_PLAY = """(async () => {
  const video = document.querySelector('video');
  await video.play();
  while (video.currentTime < 0.2) await new Promise(done => setTimeout(done, 50));
  return [video.readyState >= 2, video.videoWidth, video.webkitAudioDecodedByteCount > 0];
})()"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")
def test_the_page_opens_and_plays_on_a_phone_and_on_a_desktop_without_an_error(tmp_path):
    sweep = make_sweep(tmp_path / "sweep", {"plain": [0.50, 0.52, 0.49], "an_arm_of_a_long_name": [0.44, 0.47, 0.42]})
    for arm in ("plain", "an_arm_of_a_long_name"):
        add_samples(sweep / f"{arm}_1")
    page = write_report(open_study([str(sweep)]), tmp_path / "out").path
    with browser(tmp_path / "profile") as window:
        backgrounds = []
        for width, dark in ((360, True), (1280, False)):
            window.open(page, width, dark=dark)
            assert window.run("document.title") == "sweep"
            assert window.run("document.documentElement.scrollWidth") <= width
            assert window.run("[...document.querySelectorAll('svg .line')].every(x => x.getBBox().width > 0)")
            assert window.run("document.querySelectorAll('svg .line').length") > 4
            backgrounds.append(window.run("getComputedStyle(document.body).backgroundColor"))
            assert window.run(_PLAY) == [True, 256, True]
        assert len(set(backgrounds)) == 2  # dark and light
        assert window.errors == []
        # The list of errors can fill: it is empty above because nothing was blocked.
        window.run("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/x.png'})), 1")
        window.run("new Promise(done => setTimeout(done, 300))")
        assert any("Content Security Policy" in error for error in window.errors)

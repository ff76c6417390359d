"""The page in a browser, opened from disk."""

import pytest

from selfflow.report.study import open_study
from selfflow.report.write import write_report
from tests.report.browser import CHROMIUM, browser
from tests.report.folders import add_samples, make_sweep

_PLAY = """(async () => {
  const film = document.querySelector('video');
  await film.play();
  while (film.currentTime < 0.2) await new Promise(done => setTimeout(done, 50));
  return [film.readyState >= 2, film.videoWidth, film.webkitAudioDecodedByteCount > 0];
})()"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no `chromium` here: apt-get install chromium")
def test_it_opens_and_plays_on_a_phone_and_on_a_desktop_without_an_error(tmp_path):
    sweep = make_sweep(tmp_path / "sweep", {"plain": [0.50, 0.52, 0.49], "an_arm_of_a_long_name": [0.44, 0.47, 0.42]})
    for arm in ("plain", "an_arm_of_a_long_name"):
        add_samples(sweep / f"{arm}_1")
    page = write_report(open_study([str(sweep)]), tmp_path / "out").path
    with browser(tmp_path / "profile") as seen:
        backs = []
        for width, dark in ((360, True), (1280, False)):
            seen.open(page, width, dark=dark)
            assert seen.run("document.title") == "sweep"
            assert seen.run("document.documentElement.scrollWidth") <= width
            assert seen.run("[...document.querySelectorAll('svg .line')].every(x => x.getBBox().width > 0)")
            assert seen.run("document.querySelectorAll('svg .line').length") > 4
            backs.append(seen.run("getComputedStyle(document.body).backgroundColor"))
            assert seen.run(_PLAY) == [True, 256, True]
        assert len(set(backs)) == 2  # dark and light
        assert seen.errors == []
        # What the page may not do is reported: the list is empty because there is nothing, not because nobody looks.
        seen.run("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/x.png'})), 1")
        seen.run("new Promise(done => setTimeout(done, 300))")
        assert any("Content Security Policy" in error for error in seen.errors)

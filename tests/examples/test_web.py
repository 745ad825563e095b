"""The web page, in a real browser, and its server, as pages of other sites see it.

`tests/examples.rs` runs this, with an environment in which GStreamer finds the plugin that was just built.
"""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
import unittest
from pathlib import Path

from webdriver import Browser

SERVER = Path(__file__).resolve().parents[2] / "examples/web/server.py"
# Seconds for what must happen.
PATIENCE = 60
ARROW_RIGHT, HOME, ENTER = "\ue014", "\ue011", "\ue007"
# Mean red, green and blue of the picture that the page shows.
MEANS = """
const image = document.getElementById("preview");
if (!image.naturalWidth) return null;
const canvas = document.createElement("canvas");
[canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
const context = canvas.getContext("2d");
context.drawImage(image, 0, 0);
const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
const sums = [0, 0, 0];
for (let i = 0; i < data.length; i++) if (i % 4 < 3) sums[i % 4] += data[i];
return sums.map((sum) => sum * 4 / data.length);
"""
# A number that stands for the pixels of the picture that the page shows.
FINGERPRINT = MEANS.replace("return sums.map((sum) => sum * 4 / data.length);", """
return data.reduce((hash, byte) => (hash * 31 + byte) % 1000000007, 7);
""")


def wait_until(what, condition):
    """What `condition` returns once that is true."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"not in time: {what}")


class WebTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        arguments = ["--port", "0", "--size", "128x128", "--set", "width=64", "--set", "height=64"]
        cls.server = subprocess.Popen(
            [sys.executable, str(SERVER), *arguments, "--prompt", "night vision"], stdout=subprocess.PIPE, text=True
        )
        line = cls.server.stdout.readline()
        if not line.startswith("open http://127.0.0.1:"):
            raise AssertionError(f"it does not start: {line}")
        cls.url = line.split()[1]
        cls.port = int(cls.url.rstrip("/").rpartition(":")[2])

    @classmethod
    def tearDownClass(cls):
        cls.server.send_signal(signal.SIGINT)
        cls.server.communicate(timeout=PATIENCE)
        if cls.server.returncode != 0:
            raise AssertionError(f"the server ended with {cls.server.returncode}")

    def ask(self, method, path, body=None, headers=()):
        """Status and content of a request's answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            content = response.read()
            self.headers = response.headers
            return response.status, content
        finally:
            connection.close()

    def state(self):
        status, content = self.ask("GET", "/state")
        self.assertEqual(status, 200)
        return json.loads(content)

    def set(self, values, **headers):
        headers = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        body = values if isinstance(values, (bytes, str)) else json.dumps(values)
        status, content = self.ask("POST", "/properties", body, headers)
        return status, json.loads(content)

    def wait_for_property(self, name, value):
        wait_until(f"{name} is {value}", lambda: self.state()["properties"][name] == value)

    def test_page_in_a_browser(self):
        with Browser() as browser:
            browser.open(self.url)

            # The picture is there, restyled, and moves.
            def is_night_vision():
                means = browser.run(MEANS)
                return means and means[1] > max(means[0], means[2]) + 40

            wait_until("a picture of night vision", is_night_vision)
            first = browser.run(FINGERPRINT)
            wait_until("another picture", lambda: browser.run(FINGERPRINT) != first)
            wait_until("the summary", lambda: "64×64" in browser.run("return summary.textContent"))

            # A control for each property that can be changed while playing, and a label for each control.
            expected = {name for name in self.state()["properties"] if name != "prompt"}
            found = browser.run(
                "return [...document.querySelectorAll('.control input, .control select')]"
                ".filter((input) => input.labels.length == 1).map((input) => input.id)"
            )
            self.assertEqual({f"control-{name}" for name in expected}, set(found))
            self.assertTrue({"strength", "guidance-scale", "steps", "ssf-threshold"} <= expected)

            # A new prompt.
            browser.type("#prompt", "a blueprint" + ENTER, clear=True)
            self.wait_for_property("prompt", "a blueprint")

            def is_blueprint():
                red, green, blue = browser.run(MEANS)
                return blue > red + 60 and blue > green + 30

            wait_until("a picture of a blueprint", is_blueprint)

            # Sliders, a switch and a list.
            browser.type("#control-strength", HOME + ARROW_RIGHT * 40)
            wait_until("strength 0.4", lambda: abs(self.state()["properties"]["strength"] - 0.4) < 1e-6)
            self.assertEqual(browser.run("return document.querySelector('#control-strength + output').value"), "0.40")
            browser.type("#control-steps", HOME + ARROW_RIGHT * 2)
            self.wait_for_property("steps", 3)
            browser.type("#control-guidance-scale", HOME + ARROW_RIGHT * 30)
            wait_until("guidance 1.5", lambda: abs(self.state()["properties"]["guidance-scale"] - 1.5) < 1e-6)
            browser.type("#control-ssf-threshold", HOME + ARROW_RIGHT * 50)
            wait_until("threshold 0.5", lambda: abs(self.state()["properties"]["ssf-threshold"] - 0.5) < 1e-6)
            self.assertFalse(self.state()["properties"]["similarity-filter"])
            browser.click("#control-similarity-filter")
            self.wait_for_property("similarity-filter", True)
            browser.click("details summary")
            browser.type("#control-cfg-type", "full")
            self.wait_for_property("cfg-type", "full")

            # What others change is shown here.
            browser.run("document.activeElement.blur()")
            self.assertEqual(self.set({"strength": 0.25, "seed": 77})[0], 200)
            wait_until("another strength", lambda: browser.run("return document.getElementById('control-strength').value") == "0.25")
            wait_until("another seed", lambda: browser.run("return document.getElementById('control-seed').value") == "77")

            # Text is text.
            hostile = "<img src=x onerror=window.broken=1> & \"'</script>"
            browser.type("#prompt", hostile + ENTER, clear=True)
            self.wait_for_property("prompt", hostile)
            browser.open(self.url)
            wait_until("the prompt", lambda: browser.run("return document.getElementById('prompt').value") == hostile)
            self.assertIsNone(browser.run("return window.broken ?? null"))
            self.assertEqual(browser.run("return document.querySelectorAll('img').length"), 1)

            # On a phone, nothing sticks out and all can be touched.
            browser.resize(390, 844)
            overflow = browser.run("return document.documentElement.scrollWidth - window.innerWidth")
            self.assertLessEqual(overflow, 0)
            self.assertEqual(browser.run("return window.innerWidth"), 390)
            self.assertEqual(browser.console(), [])

            # What a page of another site can try: it does not read, and nothing changes.
            browser.open("about:blank")
            attempt = """
            const [url, type, done] = arguments;
            fetch(url, {method: "POST", mode: type ? "cors" : "no-cors", body: '{"strength": 0.9}',
                        headers: type ? {"Content-Type": type} : {}})
              .then((response) => done(response.type), (error) => done(String(error)));
            """
            for kind in ["application/json", ""]:
                answer = browser.run_async(attempt, self.url + "properties", kind)
                self.assertTrue(answer == "opaque" or "TypeError" in answer, answer)
            self.assertEqual(self.state()["properties"]["strength"], 0.25)

    def test_requests_of_other_sites_are_refused(self):
        before = self.state()["properties"]["delta"]
        own = f"http://127.0.0.1:{self.port}"
        for headers in [
            {"Origin": "http://example.org"},
            {"Origin": "null"},
            {"Origin": own.replace("http:", "https:")},
            {"Origin": f"http://localhost:{self.port}"},
            {"Origin": own, "Sec_Fetch_Site": "cross-site"},
            {"Host": "rebound.example.org"},
            {"Host": f"rebound.example.org:{self.port}", "Origin": f"http://rebound.example.org:{self.port}"},
            {"Content-Type": "text/plain"},
            {"Content-Type": "application/x-www-form-urlencoded"},
        ]:
            with self.subTest(headers):
                status, answer = self.set({"delta": 0.5}, **headers)
                self.assertEqual(status, 403, answer)
        self.assertEqual(self.ask("GET", "/state", headers={"Host": "rebound.example.org"})[0], 403)
        self.assertEqual(self.state()["properties"]["delta"], before)
        for headers in [{}, {"Origin": own}, {"Origin": own, "Sec_Fetch_Site": "same-origin"}]:
            self.assertEqual(self.set({"delta": before}, **headers)[0], 200)

    def test_what_is_wrong_is_told_and_changes_nothing(self):
        before = self.state()["properties"]
        for body, part in [
            ({"delta": 11}, "property delta: expected a number from 0.0 to 10.0, not 11"),
            ({"delta": 10**400}, "property delta"),
            ({"delta": "much"}, "property delta"),
            ({"delta": True}, "property delta"),
            ('{"delta": NaN}', "property delta"),
            ({"steps": 2.5}, "property steps: expected a whole number from 1 to 8"),
            ({"cfg-type": "most"}, "expected one of none, full, self, initialize"),
            ({"cfg-type": []}, "expected one of"),
            ({"prompt": "a\0b"}, "property prompt: expected text"),
            ('{"prompt": "\\ud800"}', "property prompt: expected text"),
            ({"add-noise": 1}, "property add-noise: expected true or false"),
            # Not while playing; not ever; one good value does not carry a bad one.
            ({"model": "/etc"}, "no property 'model'"),
            ({"stats": 1}, "no property 'stats'"),
            ({"delta": 0.5, "strength": 2}, "property strength"),
            ([1], "expected an object"),
            ("{", "Expecting"),
            ("[" * 50000, "recursion"),
            (b"\xff", "decode"),
        ]:
            with self.subTest(body if len(body) < 100 else "long"):
                status, answer = self.set(body)
                self.assertEqual(status, 400, answer)
                self.assertIn(part, answer["error"])
        self.assertEqual(self.set(b" " * 70000)[0], 413)
        self.assertEqual(self.set({}, Content_Length="-5")[0], 413)
        self.assertEqual(self.ask("GET", "/../server.py")[0], 404)
        self.assertEqual(self.ask("GET", "/page/../../server.py")[0], 404)
        self.assertEqual({**self.state()["properties"]}, before)

    def test_nothing_of_others_is_let_in(self):
        for path in ["/", "/page.js", "/page.css", "/icon.svg", "/state", "/controls"]:
            with self.subTest(path):
                self.assertEqual(self.ask("GET", path)[0], 200)
                policy = self.headers["Content-Security-Policy"]
                self.assertIn("default-src 'none'", policy)
                self.assertNotIn("unsafe", policy)
                self.assertEqual(self.headers["Cross-Origin-Resource-Policy"], "same-origin")
                self.assertIsNone(self.headers["Access-Control-Allow-Origin"])
        for name in os.listdir(SERVER.parent / "page"):
            text = (SERVER.parent / "page" / name).read_text()
            self.assertNotIn("//", text.replace("http://www.w3.org/2000/svg", "").replace("// ", ""), name)

    def test_watchers_have_a_limit(self):
        watching = []
        try:
            while len(watching) < 40:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
                connection.request("GET", "/stream")
                response = connection.getresponse()
                if response.status == 503:
                    connection.close()
                    break
                watching.append((connection, response))
            self.assertIn(len(watching), range(10, 17))
            # Each gets whole pictures.
            head = watching[-1][1].read(200)
            self.assertTrue(head.startswith(b"--picture\r\nContent-Type: image/jpeg\r\nContent-Length: "), head)
            self.assertIn(b"\r\n\r\n\xff\xd8", head)
        finally:
            for connection, response in watching:
                response.close()
                connection.close()
        # Their places are free again.
        wait_until("a free place", lambda: self.is_free())

    def is_free(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("GET", "/stream")
        response = connection.getresponse()
        response.close()
        connection.close()
        return response.status == 200


if __name__ == "__main__":
    unittest.main()

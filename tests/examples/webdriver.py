"""Drives a real Chromium, by the W3C WebDriver protocol and nothing but the standard library."""

import json
import os
import re
import subprocess
import tempfile
import urllib.error
import urllib.request

CONTROL, RELEASE = "\ue009", "\ue000"
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
# Seconds for one command.
PATIENCE = 60
# Whatever proxy the machine has, it is not for this.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Browser:
    """One headless browser, closed when the `with` block ends."""

    def __enter__(self):
        # Whatever it writes goes with it.
        self.profile = tempfile.TemporaryDirectory(prefix="streamdiffusion-browser-", ignore_cleanup_errors=True)
        try:
            self.driver = subprocess.Popen(
                ["chromedriver", "--port=0"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "HOME": self.profile.name, "XDG_CONFIG_HOME": self.profile.name},
            )
        except FileNotFoundError as error:
            raise RuntimeError("chromedriver is missing: scripts/setup --tests installs it") from error
        port = None
        for line in self.driver.stdout:
            if found := re.search(r"started successfully on port (\d+)", line):
                port = found[1]
                break
        if port is None:
            raise RuntimeError("chromedriver did not start")
        self.base = f"http://127.0.0.1:{port}"
        arguments = [
            "--headless=new",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            f"--user-data-dir={self.profile.name}/profile",
        ]
        if os.geteuid() == 0:
            # Chromium's own sandbox refuses to run as root.
            arguments.append("--no-sandbox")
        capabilities = {
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        answer = self.call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self.base += f"/session/{answer['sessionId']}"
        return self

    def __exit__(self, *_):
        try:
            self.call("DELETE", "")
        finally:
            self.driver.terminate()
            self.driver.communicate()
            self.profile.cleanup()

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, method=method)
        try:
            with DIRECT.open(request, timeout=PATIENCE) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {error.read().decode()}") from error

    def open(self, url):
        self.call("POST", "/url", {"url": url})

    def run(self, script, *arguments):
        """What a function body returns in the page."""
        return self.call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def run_async(self, script, *arguments):
        """What a function body hands to the callback that is its last argument."""
        return self.call("POST", "/execute/async", {"script": script, "args": list(arguments)})

    def find(self, selector):
        answer = self.call("POST", "/element", {"using": "css selector", "value": selector})
        return answer[ELEMENT]

    def type(self, selector, text, clear=False):
        """With `clear`, in place of what stands there, as people do it: the driver's own command to clear leaves the
        element, and the page may fill it anew before the text comes."""
        keys = CONTROL + "a" + RELEASE + text if clear else text
        self.call("POST", f"/element/{self.find(selector)}/value", {"text": keys})

    def click(self, selector):
        self.call("POST", f"/element/{self.find(selector)}/click", {})

    def resize(self, width, height):
        """As a phone's screen: windows cannot be made that narrow."""
        parameters = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
        command = {"cmd": "Emulation.setDeviceMetricsOverride", "params": parameters}
        self.call("POST", "/goog/cdp/execute", command)

    def console(self):
        """What the pages' consoles said since the last call."""
        return [entry["message"] for entry in self.call("POST", "/se/log", {"type": "browser"})]

"""`/docs` needs no other host, and says what bodies look like and where the key goes."""

import re

import pytest
from browser import CHROMIUM, browser
from gateway_under_test import running_fleet

from router.edge.routes import DOCUMENTED


async def test_the_pages_of_the_documentation_name_no_other_host():
    async with running_fleet(1) as fleet:
        for path in ("/docs", "/redoc"):
            page = (await fleet.http.get(path)).text
            named = re.findall(r'(?:src|href)="([^"]+)"', page)
            assert named
            assert [one for one in named if not one.startswith("/")] == []
            for one in named:
                assert (await fleet.http.get(one)).status_code == 200


async def test_every_body_has_a_schema_and_the_main_ones_an_example_and_the_key_its_place():
    async with running_fleet(1) as fleet:
        schema = (await fleet.http.get("/openapi.json")).json()
        assert schema["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
        for path, _, _ in DOCUMENTED:
            content = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]
            assert content["schema"]["type"] == "object"
        chat = schema["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
        assert chat["schema"]["required"] == ["messages"]
        example = {**chat["example"], "model": "tiny"}
        assert (await fleet.http.post("/v1/chat/completions", json=example)).status_code == 200


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (Debian: apt-get install chromium)")
async def test_in_a_browser_without_network_the_documentation_is_there(tmp_path):
    async with running_fleet(1) as fleet, browser(tmp_path / "profile") as page:
        await page.open()
        await page.go(f"{fleet.gateway.url}/docs")
        await page.until("document.querySelectorAll('.opblock').length > 20")
        assert await page.run("document.querySelector('.btn.authorize') !== null")
        assert await page.run("document.body.textContent.includes('/v1/chat/completions')")
        assert {url for url in page.asked if not url.startswith((fleet.gateway.url, "data:"))} == set()
        assert page.problems == []

// The script of the demo's page: a picture with a ticket, a login by a scan with a simulated phone,
// and the logout. The rest of the page works without it.
(function () {
  "use strict";

  const byId = (id) => document.getElementById(id);

  async function send(url, body, token) {
    const headers = { "Content-Type": "application/json" };
    if (token) headers["X-3rd-Session"] = token;
    const response = await fetch(url, {
      method: "POST",
      // The phone is not this browser.
      credentials: token === undefined ? "same-origin" : "omit",
      headers,
      body: JSON.stringify(body),
    });
    const text = await response.text();
    if (!response.ok) throw new Error(response.status + " " + text);
    return text ? JSON.parse(text) : undefined;
  }

  function on(id, act) {
    const element = byId(id);
    if (!element) return;
    element.addEventListener("click", async (event) => {
      event.preventDefault();
      try {
        await act();
      } catch (error) {
        byId("failure").textContent = error.message;
      }
    });
  }

  on("logout", async () => {
    const response = await fetch("/logout", { method: "POST", credentials: "same-origin" });
    if (!response.ok) throw new Error(String(response.status));
    location.reload();
  });

  on("load-picture", async () => {
    const picture = byId("picture");
    const path = picture.dataset.path;
    const { ticket } = await send("/ticket", { path });
    picture.src = path + "?wxgate_ticket=" + ticket;
    picture.hidden = false;
    byId("picture-url").textContent = picture.getAttribute("src");
  });

  const place = byId("scan");
  if (!place) return;
  window.WxgateScan.start(place, { lang: document.documentElement.lang, returnTo: "/demo/" });

  let phone;

  on("phone-scan", async () => {
    const image = place.querySelector("img");
    const found = image && /\/scan\/([\w-]+)\.png/.exec(image.src);
    if (!found) throw new Error("there is no code to scan");
    const code = "user-alice-" + Math.random().toString(36).slice(2);
    const { token } = await send("/login", { code, app_id: place.dataset.app }, null);
    phone = { token, url: "/scan/" + found[1] };
    const shown = await send(phone.url, { action: "scan" }, token);
    byId("phone-shows").textContent = shown.browser + ", " + shown.address + ", " + shown.since;
    byId("phone-steps").hidden = false;
  });

  for (const action of ["confirm", "deny"]) {
    on("phone-" + action, async () => {
      byId("phone-steps").hidden = true;
      await send(phone.url, { action }, phone.token);
    });
  }
})();

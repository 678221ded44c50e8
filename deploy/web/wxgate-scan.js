/*!
 * wxgate-scan: logs a web page in by a scan with the Mini Program.
 *
 * <div id="login"></div>
 * <script src="/wxgate-scan.js" data-element="#login" data-return="/orders" defer></script>
 *
 * or WxgateScan.start(element, options), which returns { stop() }. Options, and attributes of the
 * script (data-endpoint, data-lang, data-return, data-image):
 *
 * - endpoint: the gateway's `endpoints.scan`; "/scan".
 * - lang: "en" or "zh"; by default that of the document, else of the browser.
 * - image: "mini-program" (the default) shows the Mini Program code, or an ordinary QR code if the
 *   gateway has none; "qr" always draws an ordinary QR code. An ordinary code opens the Mini Program
 *   only if a rule for the URL is set at mp.weixin.qq.com.
 * - returnTo (data-return): a path of this site to go to after the login; by default the page is
 *   loaded again.
 * - onLogin: a function that is called after the login instead.
 *
 * It needs script-src, connect-src and img-src of this origin, and no inline styles. Its classes:
 * wxgate-scan, wxgate-scan-code, wxgate-scan-text, wxgate-scan-retry; the first one has
 * data-state="loading|waiting|scanned|confirmed|denied|expired|failed".
 */
(function (root) {
  "use strict";

  const document = root.document;

  const TEXTS = {
    en: {
      loading: "One moment…",
      waiting: "Scan this code with WeChat",
      scanned: "Scanned. Confirm the login on your phone.",
      confirmed: "Logged in.",
      denied: "The login was denied on the phone.",
      expired: "This code has expired.",
      failed: "Login is not available at the moment.",
      refused: "This user cannot log in.",
      limited: "Too many attempts. Try again in a minute.",
      offline: "No connection. Trying again…",
      retry: "New code",
      code: "Code to scan with WeChat",
    },
    zh: {
      loading: "请稍候…",
      waiting: "请用微信扫描二维码登录",
      scanned: "扫描成功，请在手机上确认登录",
      confirmed: "登录成功",
      denied: "已在手机上取消登录",
      expired: "二维码已过期",
      failed: "暂时无法登录",
      refused: "该用户暂时无法登录",
      limited: "操作过于频繁，请一分钟后再试",
      offline: "网络连接失败，正在重试…",
      retry: "刷新二维码",
      code: "微信登录二维码",
    },
  };

  /** Width and height of a code in pixels; styles may change it. */
  const SIZE = 240;

  /** The gateway's message for a user whom the login hook has not given one. */
  const OWN_REFUSAL = "this user may not log in";

  /**
   * Milliseconds. The gateway answers a poll after 25 seconds at the latest; a login hook may take
   * up to 30 more.
   */
  const POLL_TIMEOUT = 60000;
  const START_TIMEOUT = 15000;
  const SHORTEST_PAUSE = 1000;
  const LONGEST_PAUSE = 15000;

  /** By element, which has at most one login. */
  const running = new WeakMap();

  function start(element, options) {
    if (!element) throw new TypeError("WxgateScan.start needs an element");
    const earlier = running.get(element);
    if (earlier) earlier.stop();
    const login = createLogin(element, options || {});
    running.set(element, login);
    login.begin();
    return { stop: login.stop };
  }

  function createLogin(element, options) {
    const endpoint = String(options.endpoint || "/scan").replace(/\/+$/, "");
    const texts = TEXTS[language(options.lang)];
    const view = createView(element, texts, begin);
    let isStopped = false;
    let isLeft = false;
    // The number of times that a login has begun; responses to an earlier one are ignored.
    let round = 0;
    let controller;
    let wake;

    document.addEventListener("visibilitychange", changed);
    root.addEventListener("pagehide", left);
    root.addEventListener("pageshow", left);

    function stop() {
      if (isStopped) return;
      isStopped = true;
      round++;
      stopListening();
      interrupt();
      view.remove();
    }

    function stopListening() {
      document.removeEventListener("visibilitychange", changed);
      root.removeEventListener("pagehide", left);
      root.removeEventListener("pageshow", left);
    }

    function left(event) {
      isLeft = event.type === "pagehide";
      changed();
    }

    function isHidden() {
      return isLeft || document.visibilityState === "hidden";
    }

    /** A page that is not shown polls nothing. */
    function changed() {
      if (isHidden()) interrupt();
      else if (wake) wake();
    }

    function interrupt() {
      if (controller) controller.abort();
      if (wake) wake();
    }

    function begin() {
      if (isStopped) return;
      round++;
      interrupt();
      run(round).catch(() => view.show("failed"));
    }

    async function run(own) {
      const isOver = () => isStopped || own !== round;
      let scan;
      let state = "loading";
      let failures = 0;
      view.show(state);
      for (;;) {
        await untilVisible(isOver);
        if (isOver()) return;
        const begun = Date.now();
        const answer = scan
          ? await send("GET", `${endpoint}/${scan.id}?state=${state}`, POLL_TIMEOUT)
          : await send("POST", endpoint, START_TIMEOUT);
        if (isOver()) return;
        if (answer.isInterrupted) continue;
        const body = answer.body || {};
        const isUnderstood =
          answer.status === 200 && (scan ? isState(body.state) : isId(body.scan_id));
        if (!isUnderstood) {
          const verdict = judge(answer, !!scan);
          if (verdict) return view.show(verdict.state, verdict.message || texts[verdict.text]);
          // The scan may have ended since.
          if (scan && Date.now() > scan.endsAt) return view.show("expired");
          view.show(state, texts.offline);
          await pause(backOff(failures++, answer.retryAfter), isOver);
          continue;
        }
        if (!scan) {
          const life = Number(body.expires_in) || 120;
          // A little longer than the gateway's time, so that the gateway's response decides.
          scan = { id: body.scan_id, endsAt: Date.now() + life * 1000 + 5000 };
          state = "waiting";
          const image = options.image === "qr" ? undefined : `${endpoint}/${scan.id}.png`;
          view.code(image, String(body.content));
          view.show(state);
          failures = 0;
          continue;
        }
        if (body.state !== state || failures) view.show(body.state);
        failures = 0;
        if (body.state === "confirmed") return finish();
        if (body.state === "denied" || body.state === "expired") return;
        const took = Date.now() - begun;
        if (body.state === state && took < SHORTEST_PAUSE) await pause(SHORTEST_PAUSE - took, isOver);
        state = body.state;
      }
    }

    /** Resolves with a status; 0 if there was no response in time. */
    async function send(method, url, timeout) {
      const own = (controller = new root.AbortController());
      let isLate = false;
      const timer = root.setTimeout(() => {
        isLate = true;
        own.abort();
      }, timeout);
      try {
        const response = await root.fetch(url, {
          method,
          credentials: "same-origin",
          cache: "no-store",
          redirect: "error",
          headers: { Accept: "application/json" },
          signal: own.signal,
        });
        const body = await response.json().catch((error) => {
          if (own.signal.aborted) throw error;
        });
        const retryAfter = Number(response.headers.get("Retry-After")) || 0;
        return { status: response.status, body, retryAfter };
      } catch (_) {
        return { status: 0, isInterrupted: own.signal.aborted && !isLate };
      } finally {
        root.clearTimeout(timer);
      }
    }

    function finish() {
      if (typeof options.onLogin === "function") {
        stopListening();
        options.onLogin();
      } else if (isPath(options.returnTo)) {
        root.location.assign(options.returnTo);
      } else {
        root.location.reload();
      }
    }

    /** Waits; `interrupt` and a page that is shown again end it. */
    function pause(milliseconds, isOver) {
      if (isOver()) return Promise.resolve();
      return new Promise((resolve) => {
        const timer = root.setTimeout(done, milliseconds);
        wake = done;
        function done() {
          root.clearTimeout(timer);
          wake = undefined;
          resolve();
        }
      });
    }

    async function untilVisible(isOver) {
      while (isHidden() && !isOver()) {
        await new Promise((resolve) => {
          wake = () => {
            wake = undefined;
            resolve();
          };
        });
      }
    }

    return { begin, stop };
  }

  /** The state and text after a response that is an error; undefined: the request is repeated. */
  function judge({ status, body }, hasBegun) {
    const error = body && body.error;
    if (error === "login_refused") return { state: "failed", text: "refused", message: ofHook(body) };
    // The scan is used up.
    if (error === "login_unavailable") return { state: "failed", text: "failed" };
    if (!hasBegun && status === 429) return { state: "failed", text: "limited" };
    if (hasBegun && status === 404) return { state: "expired", text: "expired" };
    if (status === 0 || status === 408 || status === 429 || status > 499) return undefined;
    return { state: "failed", text: "failed" };
  }

  /** The message of the login hook, in place of which the gateway has one of its own in English. */
  function ofHook({ message }) {
    return typeof message === "string" && message !== OWN_REFUSAL ? message : "";
  }

  /** Milliseconds until the next try: twice as long each time, a little random. */
  function backOff(failures, retryAfter) {
    const pause = Math.min(LONGEST_PAUSE, SHORTEST_PAUSE * 2 ** failures);
    return Math.max(pause * (0.75 + Math.random() / 2), Math.min(retryAfter || 0, 60) * 1000);
  }

  function isState(word) {
    return /^(waiting|scanned|confirmed|denied|expired)$/.test(word);
  }

  function isId(id) {
    return typeof id === "string" && /^[\w-]{1,32}$/.test(id);
  }

  /** Whether it is a path of this site: browsers read "//" and "/\" as the beginning of a host. */
  function isPath(path) {
    return typeof path === "string" && /^\/(?![/\\])[^\u0000-\u001f\u007f]*$/.test(path);
  }

  function language(wanted) {
    const given = wanted || document.documentElement.lang || root.navigator.language || "";
    return /^zh\b/i.test(given) ? "zh" : "en";
  }

  function createView(element, texts, retry) {
    const box = make("div", "wxgate-scan");
    const place = make("div", "wxgate-scan-code");
    const text = make("p", "wxgate-scan-text");
    const button = make("button", "wxgate-scan-retry");
    text.setAttribute("role", "status");
    button.type = "button";
    button.textContent = texts.retry;
    offer(false);
    button.addEventListener("click", retry);
    [place, text, button].forEach((part) => box.appendChild(part));
    element.appendChild(box);

    /** Shows the image at `url`; without one, or if it cannot be loaded, `content` is drawn. */
    function code(url, content) {
      if (!url) return fill(draw(content, texts.code));
      const image = make("img");
      image.alt = texts.code;
      image.width = image.height = SIZE;
      image.addEventListener("error", () => {
        if (image.parentNode === place) fill(draw(content, texts.code));
      });
      image.src = url;
      fill(image);
    }

    function fill(part) {
      while (place.firstChild) place.removeChild(place.firstChild);
      if (part) place.appendChild(part);
    }

    function show(state, words) {
      box.setAttribute("data-state", state);
      text.textContent = words || texts[state];
      offer(/^(denied|expired|failed)$/.test(state));
      // The code of a scan that has ended must not be scanned.
      if (!/^(waiting|scanned)$/.test(state)) fill();
    }

    /** A site's rule for buttons overrides `hidden`. */
    function offer(isOffered) {
      button.hidden = !isOffered;
      button.style.display = isOffered ? "" : "none";
    }

    function remove() {
      if (box.parentNode) box.parentNode.removeChild(box);
    }

    return { code, show, remove };
  }

  function make(name, className) {
    const part = document.createElement(name);
    if (className) part.className = className;
    return part;
  }

  /** A text as a QR code; nothing if it is too long. */
  function draw(content, label) {
    const modules = qrCode(content);
    if (!modules) return undefined;
    const quiet = 4;
    const width = modules.length + 2 * quiet;
    const svg = part("svg", {
      viewBox: `0 0 ${width} ${width}`,
      width: SIZE,
      height: SIZE,
      role: "img",
      "aria-label": label,
      "shape-rendering": "crispEdges",
    });
    const path = [];
    modules.forEach((row, y) =>
      row.forEach((isDark, x) => {
        if (isDark) path.push(`M${x + quiet} ${y + quiet}h1v1h-1z`);
      }),
    );
    svg.appendChild(part("rect", { width, height: width, fill: "#fff" }));
    svg.appendChild(part("path", { d: path.join(""), fill: "#000" }));
    return svg;
  }

  function part(name, attributes) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    Object.keys(attributes).forEach((key) => element.setAttribute(key, attributes[key]));
    return element;
  }

  // QR codes (ISO/IEC 18004): byte mode, level M, versions 1 to 10.

  /** By version: codewords for errors of each block, blocks, and data codewords of all blocks. */
  const VERSIONS = [
    [10, 1, 16],
    [16, 1, 28],
    [26, 1, 44],
    [18, 2, 64],
    [24, 2, 86],
    [16, 4, 108],
    [18, 4, 124],
    [22, 4, 154],
    [22, 5, 182],
    [26, 5, 216],
  ];

  /** The modules of a QR code, row by row, dark ones true; undefined if the text is too long. */
  function qrCode(text) {
    const bytes = new root.TextEncoder().encode(text);
    const version = 1 + VERSIONS.findIndex(([, , data], at) => bytes.length + (at < 9 ? 2 : 3) <= data);
    if (!version) return undefined;
    const codewords = interleave(dataCodewords(bytes, version), version);
    let best;
    for (let mask = 0; mask < 8; mask++) {
      const modules = place(codewords, version, mask);
      const penalty = rate(modules);
      if (!best || penalty < best.penalty) best = { modules, penalty };
    }
    return best.modules;
  }

  function dataCodewords(bytes, version) {
    const capacity = VERSIONS[version - 1][2];
    const bits = [];
    const add = (value, length) => {
      for (let at = length - 1; at >= 0; at--) bits.push((value >> at) & 1);
    };
    add(4, 4);
    add(bytes.length, version < 10 ? 8 : 16);
    bytes.forEach((byte) => add(byte, 8));
    add(0, Math.min(4, capacity * 8 - bits.length));
    add(0, -bits.length & 7);
    const words = [];
    for (let at = 0; at < bits.length; at += 8) {
      words.push(bits.slice(at, at + 8).reduce((sum, bit) => sum * 2 + bit, 0));
    }
    for (let pad = 0xec; words.length < capacity; pad ^= 0xfd) words.push(pad);
    return words;
  }

  /** Data and codewords for errors, in the order in which they are placed. */
  function interleave(words, version) {
    const [errors, count] = VERSIONS[version - 1];
    const short = Math.floor(words.length / count);
    const shortBlocks = count - (words.length % count);
    const divisor = generator(errors);
    const blocks = [];
    for (let at = 0, number = 0; number < count; number++) {
      const data = words.slice(at, at + short + (number < shortBlocks ? 0 : 1));
      at += data.length;
      blocks.push([data, remainder(data, divisor)]);
    }
    const result = [];
    for (const [which, longest] of [[0, short + 1], [1, errors]]) {
      for (let at = 0; at < longest; at++) {
        for (const block of blocks) if (at < block[which].length) result.push(block[which][at]);
      }
    }
    return result;
  }

  /** In GF(256) with x^8 + x^4 + x^3 + x^2 + 1. */
  function multiply(x, y) {
    let product = 0;
    for (let at = 7; at >= 0; at--) {
      product = (product << 1) ^ ((product >> 7) * 0x11d);
      product ^= ((y >> at) & 1) * x;
    }
    return product;
  }

  function generator(degree) {
    const result = new Array(degree).fill(0);
    result[degree - 1] = 1;
    for (let power = 0, factor = 1; power < degree; power++, factor = multiply(factor, 2)) {
      for (let at = 0; at < degree; at++) {
        result[at] = multiply(result[at], factor) ^ (at + 1 < degree ? result[at + 1] : 0);
      }
    }
    return result;
  }

  function remainder(data, divisor) {
    const result = new Array(divisor.length).fill(0);
    for (const word of data) {
      const factor = word ^ result.shift();
      result.push(0);
      divisor.forEach((coefficient, at) => (result[at] ^= multiply(coefficient, factor)));
    }
    return result;
  }

  const MASKS = [
    (x, y) => (x + y) % 2,
    (x, y) => y % 2,
    (x) => x % 3,
    (x, y) => (x + y) % 3,
    (x, y) => (Math.floor(x / 3) + Math.floor(y / 2)) % 2,
    (x, y) => ((x * y) % 2) + ((x * y) % 3),
    (x, y) => (((x * y) % 2) + ((x * y) % 3)) % 2,
    (x, y) => (((x + y) % 2) + ((x * y) % 3)) % 2,
  ];

  function place(codewords, version, mask) {
    const size = 17 + 4 * version;
    const modules = Array.from({ length: size }, () => new Array(size));
    const set = (x, y, isDark) => {
      if (x >= 0 && y >= 0 && x < size && y < size) modules[y][x] = !!isDark;
    };
    for (let at = 0; at < size; at++) {
      set(6, at, at % 2 === 0);
      set(at, 6, at % 2 === 0);
    }
    const square = (centerX, centerY, radius, isDark) => {
      for (let dy = -radius; dy <= radius; dy++) {
        for (let dx = -radius; dx <= radius; dx++) {
          set(centerX + dx, centerY + dy, isDark(Math.max(Math.abs(dx), Math.abs(dy))));
        }
      }
    };
    for (const [x, y] of [[3, 3], [size - 4, 3], [3, size - 4]]) {
      square(x, y, 4, (distance) => distance !== 2 && distance !== 4);
    }
    const last = size - 7;
    const centers = version < 2 ? [] : version < 7 ? [6, last] : [6, (6 + last) / 2, last];
    for (const y of centers) {
      for (const x of centers) {
        const isFinder = (x === 6 && y === 6) || (x === 6 && y === last) || (x === last && y === 6);
        if (!isFinder) square(x, y, 2, (distance) => distance !== 1);
      }
    }
    // Level M is 0.
    let format = mask;
    for (let at = 0; at < 10; at++) format = (format << 1) ^ ((format >> 9) * 0x537);
    format = ((mask << 10) | format) ^ 0x5412;
    for (let at = 0; at < 15; at++) {
      const bit = (format >> at) & 1;
      if (at < 6) set(8, at, bit);
      else if (at < 8) set(8, at + 1, bit);
      else if (at === 8) set(7, 8, bit);
      else set(14 - at, 8, bit);
      if (at < 8) set(size - 1 - at, 8, bit);
      else set(8, size - 15 + at, bit);
    }
    set(8, size - 8, true);
    if (version > 6) {
      let rest = version;
      for (let at = 0; at < 12; at++) rest = (rest << 1) ^ ((rest >> 11) * 0x1f25);
      const bits = (version << 12) | rest;
      for (let at = 0; at < 18; at++) {
        const bit = (bits >> at) & 1;
        const [far, near] = [size - 11 + (at % 3), Math.floor(at / 3)];
        set(far, near, bit);
        set(near, far, bit);
      }
    }
    let bit = 0;
    for (let right = size - 1, isUp = true; right > 0; right -= 2, isUp = !isUp) {
      if (right === 6) right = 5;
      for (let step = 0; step < size; step++) {
        const y = isUp ? size - 1 - step : step;
        for (const x of [right, right - 1]) {
          if (modules[y][x] !== undefined) continue;
          const isDark = ((codewords[bit >> 3] || 0) >> (7 - (bit & 7))) & 1;
          modules[y][x] = !!isDark !== (MASKS[mask](x, y) === 0);
          bit++;
        }
      }
    }
    return modules;
  }

  /** How hard the modules are to read; the mask with the least is taken. */
  function rate(modules) {
    const size = modules.length;
    let penalty = 0;
    let dark = 0;
    const finder = /(?=10111010000|00001011101)/g;
    for (let y = 0; y < size; y++) {
      const row = modules[y].map(Number).join("");
      const column = modules.map((line) => Number(line[y])).join("");
      dark += row.split("1").length - 1;
      for (const line of [row, column]) {
        for (const run of line.match(/0{5,}|1{5,}/g) || []) penalty += run.length - 2;
        penalty += (line.match(finder) || []).length * 40;
      }
      for (let x = 0; y && x + 1 < size; x++) {
        const pair = [modules[y][x], modules[y][x + 1], modules[y - 1][x], modules[y - 1][x + 1]];
        if (pair.every((isDark) => isDark === pair[0])) penalty += 3;
      }
    }
    return penalty + 10 * Math.floor(Math.abs((dark * 20) / (size * size) - 10));
  }

  root.WxgateScan = { start, qrCode };

  const script = document.currentScript;
  const data = (script && script.dataset) || {};
  if (data.element) {
    const begin = () =>
      start(document.querySelector(data.element), {
        endpoint: data.endpoint,
        lang: data.lang,
        image: data.image,
        returnTo: data.return,
      });
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
    else begin();
  }
})(window);

/**
 * A phone: the functions of `wx` that the client uses, over Node's sockets, with the habits of
 * a Mini Program. Every status is a success, there are no cookies, ten calls run at once,
 * answers come by callback, and the results of uploads and downloads have no headers.
 */

import { randomUUID } from "node:crypto";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import http from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import WebSocket from "ws";

/** Calls under way together (network guide of Mini Programs). */
const AT_ONCE = 10;
const METHODS = ["OPTIONS", "GET", "HEAD", "POST", "PUT", "DELETE", "TRACE", "CONNECT"];

/** What survives a restart of the app. */
export class Storage {
  #values = new Map();

  getStorageSync(key) {
    return this.#values.has(key) ? structuredClone(this.#values.get(key)) : "";
  }
  setStorageSync(key, value) {
    this.#values.set(key, structuredClone(value));
  }
  removeStorageSync(key) {
    this.#values.delete(key);
  }
  /** Everything that is stored. */
  entries() {
    return [...this.#values.entries()];
  }
}

/** One run of an app on a phone. */
export class Phone {
  /** What the phone did, in order: `login`, `POST /login`, ... */
  log = [];
  /** Most calls of `wx.login` under way together. */
  mostLogins = 0;
  /** Most requests under way together. */
  mostAtOnce = 0;
  #logins = 0;
  #running = 0;
  #waiting = [];
  #lost = [];

  /** `user` logs in; `codes` are given out before those that are good. */
  constructor({ user = randomUUID(), storage = new Storage(), codes = [] } = {}) {
    Object.assign(this, { user, storage, codes });
    for (const name of ["getStorageSync", "setStorageSync", "removeStorageSync"]) {
      this[name] = (...values) => storage[name](...values);
    }
    // Pages take the functions out of `wx`.
    for (const name of ["login", "checkSession", "request", "uploadFile", "downloadFile", "connectSocket"]) {
      this[name] = this[name].bind(this);
    }
  }

  /** The answer to the next request of this path is lost on the way. */
  loseAnswer(path) {
    this.#lost.push(path);
  }

  /** How often the phone did this. */
  count(what) {
    return this.log.filter((line) => line === what).length;
  }

  login({ success, fail, complete } = {}) {
    this.log.push("login");
    this.mostLogins = Math.max(this.mostLogins, ++this.#logins);
    const code = this.codes.length ? this.codes.shift() : `user-${this.user}-${randomUUID()}`;
    setImmediate(() => {
      this.#logins--;
      const result = code instanceof Error ? { errMsg: code.message } : { code, errMsg: "login:ok" };
      (code instanceof Error ? fail : success)?.(result);
      complete?.(result);
    });
  }

  checkSession({ fail, complete } = {}) {
    this.log.push("checkSession");
    fail?.({ errMsg: "checkSession:fail session_key expired" });
    complete?.({});
  }

  request(option) {
    const method = (option.method || "GET").toUpperCase();
    const url = new URL(option.url);
    const header = { "content-type": "application/json", ...lowered(option.header) };
    let body;
    if (method === "GET" && isObject(option.data)) {
      Object.entries(option.data).forEach(([key, value]) => url.searchParams.append(key, value));
    } else if (isObject(option.data)) {
      body = JSON.stringify(option.data);
    } else {
      body = option.data;
    }
    return this.#send("request", option, method, url, header, body, (response, bytes) => ({
      ...response,
      data: option.responseType === "arraybuffer" ? bytes.buffer : parsed(bytes, option.dataType),
      cookies: [response.header["Set-Cookie"]].flat().filter(Boolean),
    }));
  }

  uploadFile(option) {
    const boundary = `----wx${randomUUID()}`;
    const fields = Object.entries(option.formData || {}).map(([name, value]) => part(boundary, `name="${name}"`, value));
    const file = part(boundary, `name="${option.name}"; filename="file"`, readFileSync(option.filePath));
    const body = Buffer.concat([...fields, file, Buffer.from(`--${boundary}--\r\n`)]);
    const header = { ...lowered(option.header), "content-type": `multipart/form-data; boundary=${boundary}` };
    return this.#send("uploadFile", option, "POST", new URL(option.url), header, body, ({ statusCode }, bytes) => ({
      statusCode,
      data: bytes.toString(),
    }));
  }

  downloadFile(option) {
    const header = lowered(option.header);
    return this.#send("downloadFile", option, "GET", new URL(option.url), header, undefined, ({ statusCode }, bytes) => {
      const path = option.filePath || join(mkdtempSync(join(tmpdir(), "wx-")), "file");
      writeFileSync(path, bytes);
      return { statusCode, [option.filePath ? "filePath" : "tempFilePath"]: path };
    });
  }

  connectSocket({ url, header, protocols, success, complete }) {
    this.log.push(`CONNECT ${new URL(url).pathname}`);
    const socket = new WebSocket(url, protocols || [], { headers: lowered(header) });
    const result = { errMsg: "connectSocket:ok" };
    success?.(result);
    complete?.(result);
    return {
      onOpen: (listener) => socket.on("open", () => listener({})),
      onMessage: (listener) => socket.on("message", (data) => listener({ data: data.toString() })),
      onError: (listener) => socket.on("error", ({ message }) => listener({ errMsg: message })),
      onClose: (listener) => socket.on("close", (code) => listener({ code })),
      send: ({ data }) => socket.send(data),
      close: () => socket.close(),
    };
  }

  #send(verb, option, method, url, header, body, finish) {
    const listeners = { HeadersReceived: new Set(), ChunkReceived: new Set(), ProgressUpdate: new Set() };
    const task = { abort: () => fail("abort") };
    for (const [event, set] of Object.entries(listeners)) {
      task["on" + event] = (listener) => set.add(listener);
      task["off" + event] = (listener) => (listener ? set.delete(listener) : set.clear());
    }
    let sent;
    let isOver = false;
    const over = (callback, result) => {
      if (isOver) return;
      isOver = true;
      this.#running--;
      this.#waiting.shift()?.();
      callback?.(result);
      option.complete?.(result);
    };
    const fail = (reason) => {
      sent?.destroy();
      over(option.fail, { errMsg: `${verb}:fail ${reason}` });
    };
    const start = () => {
      this.mostAtOnce = Math.max(this.mostAtOnce, ++this.#running);
      if (isOver) return;
      if (!METHODS.includes(method)) return fail("invalid method");
      this.log.push(`${method} ${url.pathname}`);
      this.sent = header["x-3rd-session"] || this.sent;
      const lost = this.#lost.indexOf(url.pathname);
      if (lost >= 0) this.#lost.splice(lost, 1);
      const headers = { ...header, referer: "https://servicewechat.com/wx/0/page-frame.html" };
      if (body !== undefined) headers["content-length"] = Buffer.byteLength(body);
      sent = http.request(url, { method, headers, timeout: option.timeout ?? 60_000, agent: false });
      sent.on("timeout", () => fail("timeout"));
      sent.on("error", (error) => fail(error.code));
      sent.on("response", async (response) => {
        const names = {};
        response.rawHeaders.forEach((name, i, all) => i % 2 || (names[name] = all[i + 1]));
        const received = { statusCode: response.statusCode, header: names };
        if (lost < 0) listeners.HeadersReceived.forEach((listener) => listener(received));
        const chunks = [];
        response.on("error", () => fail("broken"));
        for await (const chunk of response) {
          chunks.push(chunk);
          if (option.enableChunked) listeners.ChunkReceived.forEach((listener) => listener({ data: chunk }));
        }
        // The gateway has answered; the phone never hears of it.
        if (lost >= 0) return fail("timeout");
        over(option.success, { errMsg: `${verb}:ok`, ...finish(received, Buffer.concat(chunks)) });
      });
      sent.end(body);
    };
    if (this.#running < AT_ONCE) start();
    else this.#waiting.push(start);
    return task;
  }
}

const isObject = (data) => data !== null && typeof data === "object" && !(data instanceof ArrayBuffer);

function lowered(header = {}) {
  const entries = Object.entries(header).map(([name, value]) => [name.toLowerCase(), value]);
  // Two names that differ in case are two lines on the wire.
  return entries.reduce((all, [name, value]) => ({ ...all, [name]: name in all ? [all[name], value].flat() : value }), {});
}

function parsed(bytes, dataType = "json") {
  if (dataType !== "json") return bytes.toString();
  try {
    return JSON.parse(bytes.toString());
  } catch {
    return bytes.toString();
  }
}

function part(boundary, disposition, value) {
  const head = `--${boundary}\r\nContent-Disposition: form-data; ${disposition}\r\n\r\n`;
  return Buffer.concat([Buffer.from(head), Buffer.from(value), Buffer.from("\r\n")]);
}

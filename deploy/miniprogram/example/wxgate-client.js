"use strict";
var __defProp = Object.defineProperty;
var __defProps = Object.defineProperties;
var __getOwnPropDesc = Object.getOwnPropertyDescriptor;
var __getOwnPropDescs = Object.getOwnPropertyDescriptors;
var __getOwnPropNames = Object.getOwnPropertyNames;
var __getOwnPropSymbols = Object.getOwnPropertySymbols;
var __hasOwnProp = Object.prototype.hasOwnProperty;
var __propIsEnum = Object.prototype.propertyIsEnumerable;
var __pow = Math.pow;
var __defNormalProp = (obj, key, value) => key in obj ? __defProp(obj, key, { enumerable: true, configurable: true, writable: true, value }) : obj[key] = value;
var __spreadValues = (a, b) => {
  for (var prop in b || (b = {}))
    if (__hasOwnProp.call(b, prop))
      __defNormalProp(a, prop, b[prop]);
  if (__getOwnPropSymbols)
    for (var prop of __getOwnPropSymbols(b)) {
      if (__propIsEnum.call(b, prop))
        __defNormalProp(a, prop, b[prop]);
    }
  return a;
};
var __spreadProps = (a, b) => __defProps(a, __getOwnPropDescs(b));
var __export = (target, all) => {
  for (var name in all)
    __defProp(target, name, { get: all[name], enumerable: true });
};
var __copyProps = (to, from, except, desc) => {
  if (from && typeof from === "object" || typeof from === "function") {
    for (let key of __getOwnPropNames(from))
      if (!__hasOwnProp.call(to, key) && key !== except)
        __defProp(to, key, { get: () => from[key], enumerable: !(desc = __getOwnPropDesc(from, key)) || desc.enumerable });
  }
  return to;
};
var __toCommonJS = (mod) => __copyProps(__defProp({}, "__esModule", { value: true }), mod);
var __async = (__this, __arguments, generator) => {
  return new Promise((resolve2, reject) => {
    var fulfilled = (value) => {
      try {
        step(generator.next(value));
      } catch (e) {
        reject(e);
      }
    };
    var rejected = (value) => {
      try {
        step(generator.throw(value));
      } catch (e) {
        reject(e);
      }
    };
    var step = (x) => x.done ? resolve2(x.value) : Promise.resolve(x.value).then(fulfilled, rejected);
    step((generator = generator.apply(__this, __arguments)).next());
  });
};

// src/index.ts
var index_exports = {};
__export(index_exports, {
  WxgateError: () => WxgateError,
  createClient: () => createClient
});
module.exports = __toCommonJS(index_exports);

// src/error.ts
var ACTIONS = {
  missing_token: "login",
  session_expired: "login",
  invalid_code: "login",
  wechat_timeout: "login",
  rate_limited: "retry",
  bad_gateway: "retry",
  wechat_busy: "retry",
  store_unavailable: "retry",
  no_upstream: "retry",
  overloaded: "retry",
  gateway_timeout: "retry"
};
var WxgateError = class extends Error {
  constructor(error, action, message, details = {}) {
    super(`${error}: ${message}`);
    this.name = "WxgateError";
    this.error = error;
    this.action = action;
    this.errMsg = message;
    this.requestId = details.requestId;
    this.statusCode = details.statusCode || 0;
    this.retryAfter = details.retryAfter;
  }
};
function gatewayError(answer) {
  const error = header(answer, "x-wxgate-error");
  return error ? describe(answer, error) : void 0;
}
function endpointError(answer) {
  return gatewayError(answer) || describe(answer, "unexpected_answer");
}
function describe(answer, error) {
  const { statusCode } = answer;
  const { action, message } = body(answer.data);
  const fallback = ACTIONS[error] || (error === "unexpected_answer" && statusCode > 499 ? "retry" : "none");
  return new WxgateError(error, action || fallback, message || `HTTP ${statusCode}`, {
    statusCode,
    requestId: header(answer, "x-request-id"),
    retryAfter: Number(header(answer, "retry-after")) || void 0
  });
}
function body(data) {
  if (typeof data !== "string") return data || {};
  try {
    return JSON.parse(data) || {};
  } catch (_) {
    return {};
  }
}
function header(answer, name) {
  const headers = answer.header || {};
  const key = Object.keys(headers).find((key2) => key2.toLowerCase() === name);
  return key && headers[key];
}

// src/session.ts
var REPLAY_WINDOW = 1e4;
var CODE_TIMEOUT = 15e3;
var CODES_A_MINUTE = 10;
var PROVEN = 1e4;
var Session = class {
  constructor(around) {
    this.around = around;
    this.savedEnd = 0;
    this.provenAt = 0;
    this.codes = [];
    this.failures = 0;
  }
  /** The token; logs in where there is none, or it must be over. */
  token() {
    return this.other();
  }
  /** A token other than this one, which was refused. */
  other(refused) {
    if (!this.held || this.held.token === refused || !isLive(this.held)) {
      this.held = this.load();
    }
    const { held } = this;
    const isGood = held && held.token !== refused && isLive(held);
    return isGood ? Promise.resolve(held.token) : this.login();
  }
  /** Logs in, together with everybody who wants to right now. */
  login() {
    return this.pending || (this.pending = this.logIn());
  }
  /** The token was used: its end has moved. */
  used(token) {
    const { held } = this;
    if (!held || held.token !== token) return;
    this.provenAt = Date.now();
    held.endsAt = this.provenAt + held.expiresIn * 1e3;
    if (held.endsAt - this.savedEnd > held.expiresIn * 100) this.save(held);
  }
  /** Whether it was just seen to be good. */
  isProven() {
    return Date.now() - this.provenAt < PROVEN;
  }
  /** The token to end, once a login under way is over. */
  last() {
    return __async(this, null, function* () {
      if (this.pending) yield this.pending.catch(() => {
      });
      const held = this.held || this.load();
      return held && held.token;
    });
  }
  /** It has ended. */
  forget() {
    this.held = void 0;
    this.provenAt = 0;
    attempt(() => this.around.storage.removeStorageSync(this.around.key));
  }
  logIn() {
    return __async(this, null, function* () {
      var _a;
      try {
        yield this.backOff();
        const held = yield this.exchange();
        this.failures = 0;
        this.failed = void 0;
        this.held = held;
        this.provenAt = Date.now();
        this.save(held);
        return held.token;
      } catch (thrown) {
        const error = thrown;
        if (error !== ((_a = this.failed) == null ? void 0 : _a.error)) {
          const wait = Math.max(error.retryAfter || 0, Math.min(60, __pow(2, ++this.failures)));
          this.failed = { error, until: Date.now() + wait * 1e3 };
        }
        throw error;
      } finally {
        this.pending = void 0;
      }
    });
  }
  /** Waits as long as the last failure asks for, or fails in the same way. */
  backOff() {
    return __async(this, null, function* () {
      const { failed } = this;
      const wait = failed ? (failed.until - Date.now()) / 1e3 : 0;
      if (failed && wait > this.around.maxWait) throw failed.error;
      if (wait > 0) yield pause(wait);
    });
  }
  exchange() {
    return __async(this, null, function* () {
      let code = yield this.code();
      for (let freshCodes = 0; ; freshCodes++) {
        const sentAt = Date.now();
        let answer;
        try {
          answer = yield this.around.trade(code);
        } catch (lost) {
          if (Date.now() + 1e3 - sentAt > REPLAY_WINDOW) throw lost;
          yield pause(1);
          answer = yield this.around.trade(code);
        }
        const { token, expires_in: expiresIn } = answer.data || {};
        if (answer.statusCode === 200 && token && expiresIn > 0) {
          return { token, expiresIn, endsAt: Date.now() + expiresIn * 1e3 };
        }
        const error = endpointError(answer);
        const most = { login: 1, retry: 3, none: 0 }[error.action];
        const wait = error.retryAfter || (error.action === "login" ? 0 : 1 + Math.random());
        if (freshCodes >= most || wait > this.around.maxWait) throw error;
        yield pause(wait);
        code = yield this.code();
      }
    });
  }
  code() {
    const now = Date.now();
    this.codes = this.codes.filter((at) => now - at < 6e4);
    if (this.codes.length >= CODES_A_MINUTE) {
      const retryAfter = Math.ceil((this.codes[0] + 6e4 - now) / 1e3);
      const message = `${CODES_A_MINUTE} in a minute`;
      throw new WxgateError("too_many_logins", "retry", message, { retryAfter });
    }
    this.codes.push(now);
    return new Promise((resolve2, reject) => {
      const fail = ({ errMsg }) => reject(new WxgateError("login_failed", "retry", errMsg));
      const timer = setTimeout(() => fail({ errMsg: "login:fail no answer" }), CODE_TIMEOUT);
      swallow(
        this.around.login({
          timeout: CODE_TIMEOUT,
          success: ({ code, errMsg }) => code ? resolve2(code) : fail({ errMsg: errMsg || "login:fail no code" }),
          fail,
          complete: () => clearTimeout(timer)
        })
      );
    });
  }
  load() {
    const held = attempt(() => this.around.storage.getStorageSync(this.around.key));
    if (!held || !held.token) return void 0;
    this.savedEnd = held.endsAt;
    return held;
  }
  save(held) {
    this.savedEnd = held.endsAt;
    attempt(() => this.around.storage.setStorageSync(this.around.key, __spreadValues({}, held)));
  }
};
function isLive(held) {
  return Date.now() < held.endsAt;
}
function attempt(storage) {
  try {
    return storage();
  } catch (_) {
    return void 0;
  }
}
function swallow(result) {
  if (result && result.catch) result.catch(() => {
  });
}
function pause(seconds) {
  return new Promise((resolve2) => setTimeout(resolve2, seconds * 1e3));
}

// src/index.ts
var SAFE = /^(GET|HEAD|OPTIONS|TRACE)$/;
var NEVER_FORWARDED = /^(rate_limited|store_unavailable|no_upstream)$/;
var RETRIES = 2;
var LOGIN_TIMEOUT = 8500;
var EVENTS = ["HeadersReceived", "ChunkReceived", "ProgressUpdate"];
var sessions = /* @__PURE__ */ new WeakMap();
function createClient(options) {
  var _a;
  const platform = options.wx || wx;
  const base = options.baseUrl.replace(/\/+$/, "");
  const socketBase = base.replace(/^http/, "ws");
  const maxWait = (_a = options.maxWait) != null ? _a : 10;
  const sessionHeader = options.header || "X-3rd-Session";
  const endpoints = __spreadValues({ login: "/login", logout: "/logout", session: "/session" }, options.endpoints);
  const session = share(platform, `wxgate:${base}:${options.appId || ""}`, (key) => ({
    key,
    maxWait,
    storage: options.storage || platform,
    login: (option) => platform.login(option),
    trade: (code) => send("request", {
      url: base + endpoints.login,
      method: "POST",
      timeout: LOGIN_TIMEOUT,
      data: options.appId ? { code, app_id: options.appId } : { code }
    })
  }));
  function send(verb, option, started) {
    return new Promise((resolve2, reject) => {
      var _a2;
      let header2;
      const task = platform[verb](__spreadProps(__spreadValues({}, option), {
        success: (answer) => resolve2(answer.header ? answer : __spreadProps(__spreadValues({}, answer), { header: header2 })),
        fail: ({ errMsg }) => reject(new WxgateError("network", "retry", errMsg)),
        complete: void 0
      }));
      swallow(task);
      (_a2 = task == null ? void 0 : task.onHeadersReceived) == null ? void 0 : _a2.call(task, (received) => header2 = received.header || {});
      started == null ? void 0 : started(task);
    });
  }
  function call(verb, option) {
    let task;
    let abort;
    const wanted = [];
    let isAborted = false;
    const aborted = new Promise((_, reject) => {
      abort = () => {
        var _a2;
        isAborted = true;
        reject(new WxgateError("aborted", "none", `${verb}:fail abort`));
        (_a2 = task == null ? void 0 : task.abort) == null ? void 0 : _a2.call(task);
      };
    });
    function run() {
      return __async(this, null, function* () {
        const url = resolve(base, option.url);
        const isSafe = verb === "downloadFile" || SAFE.test(option.method || METHODS[verb]);
        let token = yield verb === "uploadFile" ? checked() : session.token();
        let logins = 0;
        for (let retries = 0; ; ) {
          if (isAborted) return aborted;
          const header2 = withToken(option.header, token);
          const answer = yield send(verb, __spreadProps(__spreadValues({}, option), { url, header: header2 }), (started) => {
            task = started;
            wanted.forEach(([name, values]) => {
              var _a2;
              return (_a2 = task == null ? void 0 : task[name]) == null ? void 0 : _a2.call(task, ...values);
            });
          });
          const error = gatewayError(answer);
          if (!error) {
            session.used(token);
            return answer;
          }
          const wait = error.retryAfter || 1 + Math.random();
          if (error.statusCode === 401 && !logins++) {
            token = yield session.other(token);
          } else if (error.action === "retry" && (isSafe || NEVER_FORWARDED.test(error.error)) && wait <= maxWait && retries++ < RETRIES) {
            yield pause(wait);
          } else {
            throw error;
          }
        }
      });
    }
    const promise = Promise.race([run(), aborted]);
    notify(option, promise);
    promise.abort = abort;
    for (const event of EVENTS) {
      for (const name of ["on" + event, "off" + event]) {
        promise[name] = (...values) => {
          var _a2;
          wanted.push([name, values]);
          (_a2 = task == null ? void 0 : task[name]) == null ? void 0 : _a2.call(task, ...values);
        };
      }
    }
    return promise;
  }
  function checked() {
    return __async(this, null, function* () {
      yield session.token();
      if (!session.isProven()) yield client.session();
      return session.token();
    });
  }
  function withToken(header2 = {}, token) {
    const headers = {};
    for (const name of Object.keys(header2)) {
      if (name.toLowerCase() !== sessionHeader.toLowerCase()) headers[name] = header2[name];
    }
    return __spreadProps(__spreadValues({}, headers), { [sessionHeader]: token });
  }
  const client = {
    request: (option) => call("request", option),
    uploadFile: (option) => call("uploadFile", option),
    downloadFile: (option) => call("downloadFile", option),
    connectSocket(option) {
      return __async(this, null, function* () {
        var _a2, _b2;
        let asked;
        try {
          const url = resolve(socketBase, option.url);
          asked = __spreadProps(__spreadValues({}, option), { url, header: withToken(option.header, yield checked()) });
        } catch (error) {
          (_a2 = option.fail) == null ? void 0 : _a2.call(option, error);
          (_b2 = option.complete) == null ? void 0 : _b2.call(option, error);
          throw error;
        }
        return platform.connectSocket(asked);
      });
    },
    login: () => session.login().then(() => {
    }),
    logout() {
      return __async(this, null, function* () {
        const token = yield session.last();
        if (!token) return;
        const header2 = withToken({}, token);
        const option = { url: base + endpoints.logout, method: "POST", header: header2 };
        const answer = yield send("request", option);
        if (answer.statusCode !== 204) throw endpointError(answer);
        session.forget();
      });
    },
    session() {
      return __async(this, null, function* () {
        const answer = yield client.request({ url: endpoints.session });
        if (answer.statusCode !== 200) throw endpointError(answer);
        return answer.data;
      });
    }
  };
  return client;
}
var METHODS = { request: "GET", uploadFile: "POST" };
function share(platform, key, around) {
  const known = sessions.get(platform) || {};
  sessions.set(platform, known);
  return known[key] || (known[key] = new Session(around(key)));
}
function resolve(base, url) {
  if (/^\/(?!\/)/.test(url)) return base + url;
  if (url.startsWith(base + "/")) return url;
  throw new WxgateError("foreign_url", "none", `not a path, nor below ${base}`);
}
function notify(option, promise) {
  const { success, fail, complete } = option;
  if (!success && !fail && !complete) return;
  promise.then(
    (result) => {
      success == null ? void 0 : success(result);
      complete == null ? void 0 : complete(result);
    },
    (error) => {
      fail == null ? void 0 : fail(error);
      complete == null ? void 0 : complete(error);
    }
  );
}

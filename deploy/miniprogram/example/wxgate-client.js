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
  return new Promise((resolve, reject) => {
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
    var step = (x) => x.done ? resolve(x.value) : Promise.resolve(x.value).then(fulfilled, rejected);
    step((generator = generator.apply(__this, __arguments)).next());
  });
};

// src/index.ts
var index_exports = {};
__export(index_exports, {
  WxgateError: () => WxgateError,
  createClient: () => createClient,
  scanId: () => scanId
});
module.exports = __toCommonJS(index_exports);

// src/error.ts
var ACTIONS = {
  wechat_timeout: "login",
  login_unavailable: "login",
  rate_limited: "retry",
  bad_gateway: "retry",
  wechat_busy: "retry",
  store_unavailable: "retry",
  no_upstream: "retry",
  overloaded: "retry",
  gateway_timeout: "retry"
};
var WxgateError = class extends Error {
  constructor(error, action, errMsg, details = {}) {
    super(`${error}: ${errMsg}`);
    this.name = "WxgateError";
    this.error = error;
    this.action = action;
    this.errMsg = errMsg;
    this.requestId = details.requestId;
    this.statusCode = details.statusCode || 0;
    this.retryAfter = details.retryAfter;
  }
};
function platformError(thrown, error = "network") {
  if (thrown instanceof WxgateError) return thrown;
  return new WxgateError(error, "retry", String(thrown && (thrown.errMsg || thrown.message) || thrown));
}
function isGatewayError(answer) {
  if (header(answer, "x-wxgate-error")) return true;
  return Object.keys(answer.header || {}).length || answer.statusCode < 400 ? false : void 0;
}
function gatewayError(answer, chunks = []) {
  if (isGatewayError(answer) === false) return void 0;
  const { error, action, message, request_id: id } = body(answer.data, chunks);
  const isOurs = answer.statusCode > 399 && isAction(action) && typeof error === "string" && id;
  const word = header(answer, "x-wxgate-error") || isOurs && error;
  if (!word) return void 0;
  const unknown = answer.statusCode === 401 ? "login" : "none";
  const known = [action, ACTIONS[word], unknown].find(isAction);
  return describe(answer, word, known, typeof message === "string" ? message : "", id);
}
function isAction(value) {
  return /^(login|retry|none)$/.test(value);
}
function endpointError(answer, given) {
  const { error, action } = given || {};
  const known = [action, answer.statusCode > 499 ? "retry" : "none"].find(isAction);
  return gatewayError(answer) || describe(answer, error || "unexpected_answer", known, "");
}
function describe(answer, error, action, message, id) {
  return new WxgateError(error, action, message || `HTTP ${answer.statusCode}`, {
    statusCode: answer.statusCode,
    requestId: header(answer, "x-request-id") || (typeof id === "string" ? id : void 0),
    retryAfter: Number(header(answer, "retry-after")) || void 0
  });
}
function body(data, chunks) {
  try {
    const bytes = chunks.length ? chunks : data.byteLength >= 0 && [data];
    const content = bytes ? decode(bytes) : data;
    return (typeof content === "string" ? JSON.parse(content) : content) || {};
  } catch (_) {
    return {};
  }
}
function decode(chunks) {
  let escaped = "";
  for (const chunk of chunks) {
    const bytes = new Uint8Array(chunk.byteLength >= 0 ? chunk : []);
    bytes.forEach((byte) => escaped += "%" + (byte + 256).toString(16).slice(1));
  }
  return decodeURIComponent(escaped);
}
function header(answer, name) {
  const headers = answer.header || {};
  const key = Object.keys(headers).find((key2) => key2.toLowerCase() === name);
  const value = key && headers[key];
  return Array.isArray(value) ? value[0] : value;
}

// src/platform.ts
function ask(invoke, key, started = () => {
}) {
  return new Promise((success, fail) => {
    const task = invoke({ success, fail, complete: void 0 });
    started(task);
    const settle = (value) => {
      if (value && (value[key] || value.errMsg)) success(value);
      else if (value && value.abort) started(value);
    };
    if (task && task.then) task.then(settle, fail);
  });
}
function attempt(action) {
  try {
    return action();
  } catch (_) {
    return void 0;
  }
}
function swallow(result) {
  if (result && result.catch) result.catch(() => {
  });
}
function pause(seconds) {
  return new Promise((resolve) => setTimeout(resolve, seconds * 1e3));
}

// src/scan.ts
var ID = /(?:^|\/|[?&]scene=)([\w-]{22,32})$/;
function scanId(code) {
  const { scene, q } = code.query || code;
  const text = typeof code === "string" ? code : String(scene || q);
  const found = ID.exec(attempt(() => decodeURIComponent(text)) || "");
  return found ? found[1] : void 0;
}

// src/session.ts
var REPLAY_WINDOW = 1e4;
var CODE_TIMEOUT = 15e3;
var CODES_A_MINUTE = 10;
var GUEST_WAIT = 2;
var PROVEN = 1e4;
var Session = class {
  constructor(around) {
    this.around = around;
    /** Counts logouts: a call from before one must not log in again. */
    this.logouts = 0;
    this.savedEnd = 0;
    this.provenAt = 0;
    this.refused = /* @__PURE__ */ new Set();
    this.codes = [];
    this.failures = 0;
  }
  /** The token; logs in where there is none, or it must be over. */
  token() {
    return __async(this, null, function* () {
      if (this.leaving) yield this.leaving;
      return !this.pending && this.current() || this.login();
    });
  }
  /**
   * The token at hand, for a call that begins no login. A login under way may bring one soon; not
   * where the last one failed, nor for what begins after a logout. A call from before a logout,
   * when `logouts` had that value, gets none: the next session may be another user's.
   */
  atHand(logouts) {
    return __async(this, null, function* () {
      const { pending } = this;
      if (pending && !this.current() && !this.failures) {
        yield Promise.race([pending.catch(() => {
        }), pause(GUEST_WAIT)]);
      }
      return this.leaving || this.logouts !== logouts ? void 0 : this.current();
    });
  }
  /** The token, where there is one that may be good: from storage where ours is not. */
  current() {
    if (!this.isUsable(this.held)) this.held = this.load();
    return this.isUsable(this.held) ? this.held.token : void 0;
  }
  /** Logs in, together with everybody who wants to right now. */
  login() {
    return this.pending || (this.pending = this.logIn());
  }
  /** The gateway does not accept this token. One that is newer stays. */
  refuse(token) {
    var _a, _b;
    this.refused.add(token);
    this.provenAt = 0;
    if (((_a = this.held) == null ? void 0 : _a.token) === token) this.held = void 0;
    if (((_b = this.load()) == null ? void 0 : _b.token) === token) this.forget();
  }
  /** The gateway has taken the token: its end has moved. */
  used(token) {
    const { held } = this;
    if (!held || held.token !== token) return;
    held.endsAt = Date.now() + held.expiresIn * 1e3;
    if (held.endsAt - this.savedEnd > held.expiresIn * 100) this.save(held);
  }
  /** The gateway has just said that the session is good. */
  prove() {
    this.provenAt = Date.now();
  }
  isProven() {
    return isWithin(this.provenAt, PROVEN);
  }
  /** Takes the token out, once a login under way is over. */
  detach() {
    return __async(this, null, function* () {
      this.logouts++;
      if (this.pending) yield this.leaving = this.pending.catch(() => {
      });
      this.leaving = void 0;
      const held = this.held || this.load();
      this.held = void 0;
      this.provenAt = 0;
      this.forget();
      return held;
    });
  }
  /** Puts it back, where there is no other. */
  restore(held) {
    return __async(this, null, function* () {
      if (this.pending) yield this.pending.catch(() => {
      });
      if (this.current()) return;
      this.held = held;
      this.save(held);
    });
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
        this.prove();
        this.save(held);
        return held.token;
      } catch (thrown) {
        const error = platformError(thrown);
        if (error !== ((_a = this.failed) == null ? void 0 : _a.error)) {
          const most = error.error === "network" ? this.around.maxWait : 60;
          const wait = Math.max(error.retryAfter || 0, Math.min(most, __pow(2, ++this.failures)));
          this.failed = { error, at: Date.now(), wait: wait * 1e3 };
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
      if (!failed || !isWithin(failed.at, failed.wait)) return;
      const left = (failed.at + failed.wait - Date.now()) / 1e3;
      if (left > this.around.maxWait) throw failed.error;
      yield pause(left);
    });
  }
  exchange() {
    return __async(this, null, function* () {
      let code = yield this.code();
      for (let freshCodes = 0; ; freshCodes++) {
        const sentAt = Date.now();
        const answer = yield this.around.trade(code).catch((lost) => __async(this, null, function* () {
          yield pause(1);
          if (!isWithin(sentAt, REPLAY_WINDOW)) throw lost;
          return this.around.trade(code);
        }));
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
    return __async(this, null, function* () {
      this.codes = this.codes.filter((at) => isWithin(at, 6e4));
      if (this.codes.length >= CODES_A_MINUTE) {
        const retryAfter = Math.ceil((this.codes[0] + 6e4 - Date.now()) / 1e3);
        const message = `${CODES_A_MINUTE} in a minute`;
        throw new WxgateError("too_many_logins", "retry", message, { retryAfter });
      }
      this.codes.push(Date.now());
      let timer;
      try {
        const result = yield new Promise((success, fail) => {
          timer = setTimeout(() => fail({ errMsg: "login:fail no answer" }), CODE_TIMEOUT);
          const login = (callbacks) => this.around.login(__spreadValues({ timeout: CODE_TIMEOUT }, callbacks));
          ask(login, "code").then(success, fail);
        });
        if (result.code) return result.code;
        throw result;
      } catch (thrown) {
        throw platformError(thrown, "login_failed");
      } finally {
        clearTimeout(timer);
      }
    });
  }
  isUsable(held) {
    return !!held && !this.refused.has(held.token) && Date.now() < held.endsAt;
  }
  load() {
    const held = attempt(() => this.around.storage.getStorageSync(this.around.key));
    if (!held || typeof held.token !== "string") return void 0;
    this.savedEnd = held.endsAt;
    return __spreadValues({}, held);
  }
  forget() {
    attempt(() => this.around.storage.removeStorageSync(this.around.key));
  }
  // Storage may be full or forbidden; then the token lives as long as the app runs.
  save(held) {
    this.savedEnd = held.endsAt;
    attempt(() => this.around.storage.setStorageSync(this.around.key, __spreadValues({}, held)));
  }
};
function isWithin(since, milliseconds) {
  const age = Date.now() - since;
  return age >= 0 && age < milliseconds;
}

// src/task.ts
var HEADERS = "HeadersReceived";
var CHUNK = "ChunkReceived";
var EVENTS = [HEADERS, CHUNK, "ProgressUpdate"];
var MAX_HELD = 32;
function createTask() {
  const listeners = {};
  let latest;
  let watch = (_name) => {
  };
  let sent = -1;
  function tell(name, event) {
    var _a;
    if (event.totalBytesSent <= sent) return;
    sent = (_a = event.totalBytesSent) != null ? _a : sent;
    for (const listener of task.isAborted ? [] : listeners[name] || []) {
      try {
        listener(event);
      } catch (error) {
        setTimeout(() => {
          throw error;
        });
      }
    }
  }
  function begin(isChunked) {
    let header2 = {};
    const held = [];
    let isError;
    let isOver = false;
    function judge(verdict) {
      isError = verdict;
      if (verdict === false) held.splice(0).forEach(([name, event]) => tell(name, event));
    }
    function hear(name, event) {
      if (name === HEADERS && !isOver) {
        header2 = event.header || {};
        judge(isGatewayError(event));
      }
      const isFull = held.length >= MAX_HELD;
      if (isFull && isError === void 0) judge(false);
      if (isError === false || event.totalBytesSent >= 0) tell(name, event);
      else if (!isFull) held.push([name, event]);
    }
    return {
      started(platformTask) {
        if (!platformTask) return;
        const watched = {};
        latest = platformTask;
        watch = (name) => {
          if (watched[name]) return;
          watched[name] = true;
          attempt(() => {
            var _a;
            return (_a = platformTask["on" + name]) == null ? void 0 : _a.call(platformTask, (event) => hear(name, event || {}));
          });
        };
        watch(HEADERS);
        if (isChunked) watch(CHUNK);
        Object.keys(listeners).forEach(watch);
      },
      header: () => header2,
      chunks: () => held.filter(([name]) => name === CHUNK).map(([, event]) => event.data),
      ended(verdict) {
        isOver = true;
        judge(verdict);
      }
    };
  }
  const task = {
    isAborted: false,
    methods: {
      abort() {
        var _a;
        task.isAborted = true;
        (_a = latest == null ? void 0 : latest.abort) == null ? void 0 : _a.call(latest);
      }
    },
    begin
  };
  for (const name of EVENTS) {
    task.methods["on" + name] = (listener) => {
      listeners[name] = (listeners[name] || []).concat(listener);
      watch(name);
    };
    task.methods["off" + name] = (listener) => {
      listeners[name] = (listeners[name] || []).filter((other) => listener && other !== listener);
    };
  }
  return task;
}

// src/index.ts
var REQUIRED = "required";
var OPTIONAL = "optional";
var SAFE = /^(GET|HEAD|OPTIONS|TRACE)$/;
var NEVER_FORWARDED = /^(rate_limited|store_unavailable|no_upstream)$/;
var RETRIES = 2;
var LOGIN_TIMEOUT = 8500;
var ERROR_STATUS = /^[345]\d\d$/;
var METHODS = { request: "GET", downloadFile: "GET", uploadFile: "POST" };
var sessions = /* @__PURE__ */ new WeakMap();
function createClient(options) {
  var _a;
  const platform = options.wx || wx;
  const base = options.baseUrl.replace(/\/+$/, "");
  const socketBase = base.replace(/^http/, "ws");
  const maxWait = (_a = options.maxWait) != null ? _a : 10;
  const sessionHeader = options.header || "X-3rd-Session";
  const endpoints = __spreadValues({
    login: "/login",
    logout: "/logout",
    session: "/session",
    scan: "/scan",
    ticket: "/ticket"
  }, options.endpoints);
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
    }).then(({ answer }) => answer)
  }));
  function send(_0, _1) {
    return __async(this, arguments, function* (verb, option, task = createTask()) {
      const tried = task.begin(option.enableChunked);
      const outcome = yield ask(
        (callbacks) => platform[verb](__spreadValues(__spreadValues({}, option), callbacks)),
        "statusCode",
        tried.started
      ).catch((thrown) => {
        if (thrown && ERROR_STATUS.test(thrown.statusCode)) return thrown;
        tried.ended(true);
        throw platformError(thrown);
      });
      const result = outcome || {};
      const answer = __spreadProps(__spreadValues({}, result), {
        statusCode: Number(result.statusCode) || result.statusCode,
        // The results of uploads and downloads have no headers.
        header: __spreadValues(__spreadValues({}, tried.header()), result.header)
      });
      const error = gatewayError(answer, tried.chunks());
      tried.ended(!!error);
      return { answer, error };
    });
  }
  function run(verb, option, task) {
    return __async(this, null, function* () {
      const mode = takeMode(option);
      const url = locate(base, option.url);
      const isSafe = SAFE.test((option.method || METHODS[verb]).toUpperCase());
      const { logouts } = session;
      let token = yield tokenFor(mode, verb === "uploadFile");
      let isSecond = false;
      let retries = 0;
      for (; ; ) {
        if (task.isAborted) throw aborted(verb);
        const header2 = withToken(option.header, token);
        const { answer, error } = yield send(verb, __spreadProps(__spreadValues({}, option), { url, header: header2 }), task);
        if (!error) {
          if (token) session.used(token);
          return answer;
        }
        const isRefused = error.action === "login";
        if (isRefused && token) session.refuse(token);
        if (task.isAborted) throw error;
        if (isRefused && mode === OPTIONAL && token) {
          token = isSecond ? void 0 : yield session.atHand(logouts);
          isSecond = true;
          continue;
        }
        if (isRefused && mode === REQUIRED && !isSecond && session.logouts === logouts) {
          const stored = session.current();
          isSecond = !stored;
          token = stored || (yield session.token());
          continue;
        }
        const isRepeatable = isSafe || NEVER_FORWARDED.test(error.error);
        const wait = error.retryAfter || 1;
        if (error.action !== "retry" || !isRepeatable || wait > maxWait || retries++ >= RETRIES) {
          throw error;
        }
        yield pause(wait + Math.random());
      }
    });
  }
  function call(verb, given) {
    const option = __spreadValues({}, given);
    for (const name of ["data", "formData", "header"]) option[name] = copy(option[name]);
    const task = createTask();
    let stop;
    const stopped = new Promise((_, reject) => stop = reject);
    const running = run(verb, option, task).catch((thrown) => {
      throw platformError(thrown);
    });
    const promise = Promise.race([running, stopped]);
    notify(option, promise);
    return Object.assign(promise, task.methods, {
      abort() {
        stop(aborted(verb));
        task.methods.abort();
      }
    });
  }
  function tokenFor(mode, isCostly = true) {
    return __async(this, null, function* () {
      if (!mode) return void 0;
      const { logouts } = session;
      const isOptional = mode === OPTIONAL;
      const find = () => isOptional ? session.atHand(logouts) : session.token();
      const token = yield find();
      if (!token || !isCostly || session.isProven() || session.logouts !== logouts) return token;
      yield isOptional ? look(token).catch(() => {
      }) : client.session();
      return isOptional || session.logouts === logouts ? find() : token;
    });
  }
  function look(token) {
    return __async(this, null, function* () {
      const header2 = withToken({}, token);
      const { answer, error } = yield send("request", { url: base + endpoints.session, header: header2 });
      if (error && error.action === "login") session.refuse(token);
      if (answer.statusCode === 200) session.prove();
    });
  }
  function withToken(given, token) {
    const headers = __spreadValues({}, given);
    for (const name of Object.keys(headers)) {
      if (name.toLowerCase() === sessionHeader.toLowerCase()) delete headers[name];
    }
    if (token) headers[sessionHeader] = token;
    return headers;
  }
  function post(url, data) {
    return __async(this, null, function* () {
      const answer = yield client.request({ url, method: "POST", data });
      if (answer.statusCode !== 200 && answer.statusCode !== 204) throw endpointError(answer);
      return answer.data;
    });
  }
  function step(code, action) {
    return __async(this, null, function* () {
      const id = scanId(code);
      if (!id) throw new WxgateError("no_scan_code", "none", "not the code of a login");
      return post(`${endpoints.scan}/${id}`, { action });
    });
  }
  function connect(option) {
    return __async(this, null, function* () {
      const mode = takeMode(option);
      const url = locate(socketBase, option.url);
      const header2 = withToken(option.header, yield tokenFor(mode));
      return __spreadProps(__spreadValues({}, option), { success: option.success || (() => {
      }), url, header: header2 });
    });
  }
  const client = {
    request: (option) => call("request", option),
    uploadFile: (option) => call("uploadFile", option),
    downloadFile: (option) => call("downloadFile", option),
    connectSocket(option) {
      const { success, fail, complete } = option;
      let isAsked = false;
      const socket = connect(__spreadValues({}, option)).then((asked) => {
        const task = platform.connectSocket(asked);
        isAsked = true;
        return task;
      }).catch((thrown) => {
        const error = platformError(thrown);
        if (!isAsked) teller(fail, complete)(error);
        throw error;
      });
      if (success || fail || complete) swallow(socket);
      return socket;
    },
    login: () => session.login().then(() => {
    }),
    logout() {
      return __async(this, null, function* () {
        const held = yield session.detach();
        if (!held) return;
        try {
          const header2 = withToken({}, held.token);
          const option = { url: base + endpoints.logout, method: "POST", header: header2 };
          const { answer } = yield send("request", option);
          if (answer.statusCode !== 204) throw endpointError(answer);
        } catch (error) {
          yield session.restore(held);
          throw error;
        }
      });
    },
    session() {
      return __async(this, null, function* () {
        const answer = yield client.request({ url: endpoints.session });
        if (answer.statusCode !== 200) throw endpointError(answer);
        session.prove();
        return answer.data;
      });
    },
    scan: (code) => step(code, "scan"),
    confirmScan: (code) => step(code, "confirm").then(() => {
    }),
    denyScan: (code) => step(code, "deny").then(() => {
    }),
    ticket(_0) {
      return __async(this, arguments, function* (path, { reuse = false, cookie = false, baseUrl = base } = {}) {
        const { ticket, expires_in } = yield post(endpoints.ticket, { path, reuse, cookie });
        const mark = path.indexOf("?") < 0 ? "?" : "&";
        const url = `${baseUrl.replace(/\/+$/, "")}${path}${mark}wxgate_ticket=${ticket}`;
        return { ticket, expires_in, url };
      });
    },
    phoneNumber(_0, _1) {
      return __async(this, arguments, function* ({ detail }, option) {
        const { code } = detail;
        if (!code) throw new WxgateError("no_phone_code", "none", detail.errMsg || "");
        const data = __spreadProps(__spreadValues({}, option.data), { code });
        const answer = yield client.request(__spreadProps(__spreadValues({}, option), { method: "POST", data }));
        if (answer.statusCode > 399) throw endpointError(answer, answer.data);
        return answer.data;
      });
    }
  };
  return client;
}
function aborted(verb) {
  return new WxgateError("aborted", "none", `${verb}:fail abort`);
}
function takeMode(option) {
  var _a;
  const mode = (_a = option.login) != null ? _a : true;
  delete option.login;
  if (mode === true) return REQUIRED;
  if (mode === REQUIRED || mode === OPTIONAL || mode === false) return mode;
  throw new WxgateError("bad_option", "none", 'login: "required", "optional", true or false');
}
function share(platform, key, around) {
  const known = sessions.get(platform) || {};
  sessions.set(platform, known);
  return known[key] || (known[key] = new Session(around(key)));
}
function locate(base, given) {
  const url = String(given);
  const whole = /^\/(?!\/)/.test(url) ? base + url : url;
  const isBeside = /[\\\x00-\x20]|\/(\.|%2e){1,2}(\/|$)/i.test(url.split(/[?#]/)[0]);
  if (whole.startsWith(base + "/") && !isBeside) return whole;
  throw new WxgateError("foreign_url", "none", `not a path, nor below ${base}`);
}
function copy(value) {
  const isPlain = value && Object.getPrototypeOf(value) === Object.prototype;
  return isPlain ? __spreadValues({}, value) : value;
}
function notify(option, promise) {
  const { success, fail, complete } = option;
  if (!success && !fail && !complete) return;
  promise.then(teller(success, complete), teller(fail, complete));
}
function teller(callback, complete) {
  return (result) => {
    try {
      callback == null ? void 0 : callback(result);
    } finally {
      complete == null ? void 0 : complete(result);
    }
  };
}

/**
 * wxgate-client: `wx.request` and its like behind a wxgate gateway, with the login done.
 *
 * A call gets a token, is sent, and does what the gateway's errors ask for: it logs in and is
 * repeated once, or waits and is repeated, where nothing can happen twice by that.
 */

/// <reference types="miniprogram-api-typings" preserve="true" />

import { WxgateError, endpointError, gatewayError, platformError, type Answer } from "./error";
import { ask, pause, swallow } from "./platform";
import { scanId, type ScanCode } from "./scan";
import { Session, type Storage } from "./session";
import { createTask, type Task } from "./task";

export { WxgateError, type Action } from "./error";
export { scanId, type ScanCode } from "./scan";
export { type Storage } from "./session";

/** `wx`, `Taro` or `uni`. Its functions answer by callback or by promise. */
export interface Platform extends Storage {
  login(option: any): unknown;
  request(option: any): any;
  uploadFile(option: any): any;
  downloadFile(option: any): any;
  connectSocket(option: any): any;
}

export interface Options {
  /** Where the gateway is: `https://api.example.com`, with a path before the services' if need be. */
  baseUrl: string;
  /** The app that logs in, where the gateway knows several and this is not the default. */
  appId?: string;
  /** Where the token is kept; `wx` by default. */
  storage?: Storage;
  /** By default the global `wx`. */
  wx?: Platform;
  /** Seconds that a call waits at most for a `Retry-After`; what takes longer is an error. 10. */
  maxWait?: number;
  /** The gateway's `session.header`: `X-3rd-Session`. */
  header?: string;
  /** The gateway's `[endpoints]`: `/login`, `/logout`, `/session`, `/scan` and `/ticket`. */
  endpoints?: { login?: string; logout?: string; session?: string; scan?: string; ticket?: string };
}

/**
 * What a call does about the session.
 *
 * - `"required"` or `true`, the default: it has a session. Where there is none it logs in first, and
 *   after a 401 of the gateway once more.
 * - `"optional"`: it has the token at hand, if there is one. A token that the gateway does not accept
 *   is dropped, and the call is repeated without it. It begins no login, and waits for one under way
 *   for two seconds at most.
 * - `false`: it never has a token and begins no login.
 */
export type LoginMode = "required" | "optional" | boolean;

/** What the calls have besides the options of `wx`. */
export interface CallOption {
  /** `"required"` by default; for a route that is `optional` or `none`, another. */
  login?: LoginMode;
}

/** What `bindgetphonenumber` is called with, by `wx`, Taro and uni-app. */
export interface PhoneNumberEvent {
  detail: { code?: string; errMsg?: string };
}

/** Where the code goes, and what else. */
export type PhoneNumberOption = Pick<WechatMiniprogram.RequestOption, "url" | "header" | "timeout"> & {
  data?: WechatMiniprogram.IAnyObject;
};

/** The browser that a scan would log in. The user must see it before the scan is confirmed. */
export interface ScannedBrowser {
  /** Such as `Chrome on Windows`. */
  browser: string;
  /** Its IP address. */
  address: string;
  /** When its page showed the code (RFC 3339). */
  since: string;
}

export interface TicketOption {
  /** The ticket is valid any number of times until it expires: for videos, loaded in parts. */
  reuse?: boolean;
  /** A web-view of this Mini Program gets a session cookie for the ticket. */
  cookie?: boolean;
  /** Begin of `url`, such as `https://h5.example.com`; by default the client's `baseUrl`. */
  baseUrl?: string;
}

export interface Ticket {
  ticket: string;
  /** Seconds. */
  expires_in: number;
  /** The path with the ticket. */
  url: string;
}

type Wx = WechatMiniprogram.Wx;
type Data = string | WechatMiniprogram.IAnyObject | ArrayBuffer;

/** A promise that can be handled like a task of `wx`, over all its tries. */
export type Pending<Result, Task> = Promise<Result> & Task;

export interface Client {
  /** As `wx.request`. Any status of the service is a success; errors are [`WxgateError`]s. */
  request<T extends Data = any>(
    option: WechatMiniprogram.RequestOption<T> & CallOption,
  ): Pending<WechatMiniprogram.RequestSuccessCallbackResult<T>, WechatMiniprogram.RequestTask>;
  /** As `wx.uploadFile`; the session is looked at first, so that no upload is in vain. */
  uploadFile(
    option: WechatMiniprogram.UploadFileOption & CallOption,
  ): Pending<WechatMiniprogram.UploadFileSuccessCallbackResult, WechatMiniprogram.UploadTask>;
  /** As `wx.downloadFile`. */
  downloadFile(
    option: WechatMiniprogram.DownloadFileOption & CallOption,
  ): Pending<WechatMiniprogram.DownloadFileSuccessCallbackResult, WechatMiniprogram.DownloadTask>;
  /** As `wx.connectSocket`; the session is looked at first. The token is in a header. */
  connectSocket(
    option: WechatMiniprogram.ConnectSocketOption & CallOption,
  ): Promise<WechatMiniprogram.SocketTask>;
  /**
   * Sends the code of the button `open-type="getPhoneNumber"` to the service, as `{ code }` beside
   * the `data` of the option, by POST, and gives the body of its answer. Rejects with `no_phone_code`
   * where the button has no code, as after a denial; and where the service answers with an error,
   * with that error. A code is good once: the user must tap again after `invalid_phone_code`.
   */
  phoneNumber<T extends WechatMiniprogram.IAnyObject = { phone_number: string }>(
    event: PhoneNumberEvent,
    option: PhoneNumberOption,
  ): Promise<T>;
  /**
   * Takes the scan of a code, and resolves to the browser that would be logged in: show it to the
   * user, who then confirms or denies. Rejects with `no_scan_code` if the code is not that of a
   * login, `no_route` if the scan has ended, and `not_allowed` if another session has scanned it.
   */
  scan(code: ScanCode): Promise<ScannedBrowser>;
  /** Logs the browser in, after `scan`. Rejects with `no_route` if the scan has ended. */
  confirmScan(code: ScanCode): Promise<void>;
  /** Denies the login, after `scan`. */
  denyScan(code: ScanCode): Promise<void>;
  /**
   * A URL with a ticket of this session, for `<image>`, `<video>` and web-views. The path begins
   * with a slash; it is the path that the gateway gets.
   */
  ticket(path: string, option?: TicketOption): Promise<Ticket>;
  /** Logs in now. Nobody must call it: every other call does where it has to. */
  login(): Promise<void>;
  /** Ends the session. The next call begins another. */
  logout(): Promise<void>;
  /** What the gateway says of the session, which this keeps alive; logs in where there is none. */
  session(): Promise<{ expires_in: number; app_id: string }>;
}

const REQUIRED = "required";
const OPTIONAL = "optional";
type Mode = typeof REQUIRED | typeof OPTIONAL | false;

type Verb = "request" | "uploadFile" | "downloadFile";

/** Nothing happens by these, however often they arrive (RFC 9110, section 9.2.1). */
const SAFE = /^(GET|HEAD|OPTIONS|TRACE)$/;

/** With these the gateway says that it has not forwarded the request. */
const NEVER_FORWARDED = /^(rate_limited|store_unavailable|no_upstream)$/;

/** How often a call is repeated because the gateway said `retry`. */
const RETRIES = 2;

/** A login may wait for WeChat for 8 seconds by the gateway's defaults. */
const LOGIN_TIMEOUT = 8500;

/** A status that is an error's, as a number or as text. */
const ERROR_STATUS = /^[345]\d\d$/;

/** What the verbs are where the caller does not say. */
const METHODS = { request: "GET", downloadFile: "GET", uploadFile: "POST" };

/** Sessions by what they run on: two clients of one app do not log in twice. */
const sessions = new WeakMap<Storage, Record<string, Session>>();

declare const wx: Wx;

export function createClient(options: Options): Client {
  const platform: Platform = options.wx || wx;
  const base = options.baseUrl.replace(/\/+$/, "");
  const socketBase = base.replace(/^http/, "ws");
  const maxWait = options.maxWait ?? 10;
  const sessionHeader = options.header || "X-3rd-Session";
  const endpoints = {
    login: "/login",
    logout: "/logout",
    session: "/session",
    scan: "/scan",
    ticket: "/ticket",
    ...options.endpoints,
  };
  const session = share(platform, `wxgate:${base}:${options.appId || ""}`, (key) => ({
    key,
    maxWait,
    storage: options.storage || platform,
    login: (option) => platform.login(option),
    trade: (code) =>
      send("request", {
        url: base + endpoints.login,
        method: "POST",
        timeout: LOGIN_TIMEOUT,
        data: options.appId ? { code, app_id: options.appId } : { code },
      }).then(({ answer }) => answer),
  }));

  /** One try, and the gateway's error where that is the answer. Rejects where no answer came. */
  async function send(verb: Verb, option: any, task = createTask()): Promise<Sent> {
    const tried = task.begin(option.enableChunked);
    const outcome = await ask(
      (callbacks) => platform[verb]({ ...option, ...callbacks }),
      "statusCode",
      tried.started,
    ).catch((thrown) => {
      // Some platforms call every error status a failure.
      if (thrown && ERROR_STATUS.test(thrown.statusCode)) return thrown;
      tried.ended(true);
      throw platformError(thrown);
    });
    const result = outcome || {};
    const answer: Answer = {
      ...result,
      statusCode: Number(result.statusCode) || result.statusCode,
      // The results of uploads and downloads have no headers.
      header: { ...tried.header(), ...result.header },
    };
    const error = gatewayError(answer, tried.chunks());
    tried.ended(!!error);
    return { answer, error };
  }

  /** Makes a call as often as need be. */
  async function run(verb: Verb, option: any, task: Task): Promise<Answer> {
    const mode = takeMode(option);
    const url = locate(base, option.url);
    const isSafe = SAFE.test((option.method || METHODS[verb]).toUpperCase());
    const { logouts } = session;
    let token = await tokenFor(mode, verb === "uploadFile");
    let isSecond = false;
    let retries = 0;
    for (;;) {
      if (task.isAborted) throw aborted(verb);
      const header = withToken(option.header, token);
      const { answer, error } = await send(verb, { ...option, url, header }, task);
      if (!error) {
        if (token) session.used(token);
        return answer;
      }
      const isRefused = error.action === "login";
      if (isRefused && token) session.refuse(token);
      if (task.isAborted) throw error;
      if (isRefused && mode === OPTIONAL && token) {
        token = isSecond ? undefined : await session.atHand(logouts);
        isSecond = true;
        continue;
      }
      // After a logout nobody is logged in again by what was asked before.
      if (isRefused && mode === REQUIRED && !isSecond && session.logouts === logouts) {
        const stored = session.current();
        isSecond = !stored;
        token = stored || (await session.token());
        continue;
      }
      const isRepeatable = isSafe || NEVER_FORWARDED.test(error.error);
      const wait = error.retryAfter || 1;
      if (error.action !== "retry" || !isRepeatable || wait > maxWait || retries++ >= RETRIES) {
        throw error;
      }
      // Calls that were refused together do not come back together.
      await pause(wait + Math.random());
    }
  }

  /** A call that can be handled like a task of `wx`, whatever try it is at. */
  function call(verb: Verb, given: any): any {
    const option = { ...given };
    // What the caller does with it afterwards must not change a later try.
    for (const name of ["data", "formData", "header"]) option[name] = copy(option[name]);
    const task = createTask();
    let stop!: (error: WxgateError) => void;
    const stopped = new Promise<never>((_, reject) => (stop = reject));
    const running = run(verb, option, task).catch((thrown) => {
      throw platformError(thrown);
    });
    const promise: any = Promise.race([running, stopped]);
    notify(option, promise);
    return Object.assign(promise, task.methods, {
      abort() {
        stop(aborted(verb));
        task.methods.abort();
      },
    });
  }

  /**
   * The token of a call; none for a guest. A call that must not be made in vain, an upload or a
   * socket, looks at the session first.
   */
  async function tokenFor(mode: Mode, isCostly = true): Promise<string | undefined> {
    if (!mode) return undefined;
    const { logouts } = session;
    const isOptional = mode === OPTIONAL;
    const find = () => (isOptional ? session.atHand(logouts) : session.token());
    const token = await find();
    if (!token || !isCostly || session.isProven() || session.logouts !== logouts) return token;
    await (isOptional ? look(token).catch(() => {}) : client.session());
    return isOptional || session.logouts === logouts ? find() : token;
  }

  /** Looks whether the session of a token is good, and begins none. */
  async function look(token: string): Promise<void> {
    const header = withToken({}, token);
    const { answer, error } = await send("request", { url: base + endpoints.session, header });
    if (error && error.action === "login") session.refuse(token);
    if (answer.statusCode === 200) session.prove();
  }

  /** The caller's headers, and the token in place of any of their own. */
  function withToken(given: any, token?: string): object {
    const headers: Record<string, string> = { ...given };
    for (const name of Object.keys(headers)) {
      if (name.toLowerCase() === sessionHeader.toLowerCase()) delete headers[name];
    }
    if (token) headers[sessionHeader] = token;
    return headers;
  }

  /** Posts to an endpoint of the gateway, with the session. */
  async function post(url: string, data: object): Promise<any> {
    const answer: Answer = await client.request({ url, method: "POST", data });
    if (answer.statusCode !== 200 && answer.statusCode !== 204) throw endpointError(answer);
    return answer.data;
  }

  async function step(code: ScanCode, action: string): Promise<any> {
    const id = scanId(code);
    if (!id) throw new WxgateError("no_scan_code", "none", "not the code of a login");
    return post(`${endpoints.scan}/${id}`, { action });
  }

  async function connect(option: any): Promise<any> {
    const mode = takeMode(option);
    const url = locate(socketBase, option.url);
    const header = withToken(option.header, await tokenFor(mode));
    // uni-app gives the task only to those who want to be called back.
    return { ...option, success: option.success || (() => {}), url, header };
  }

  const client: Client = {
    request: (option) => call("request", option),
    uploadFile: (option) => call("uploadFile", option),
    downloadFile: (option) => call("downloadFile", option),
    connectSocket(option) {
      const { success, fail, complete } = option;
      let isAsked = false;
      const socket = connect({ ...option })
        .then((asked) => {
          const task = platform.connectSocket(asked);
          isAsked = true;
          return task;
        })
        .catch((thrown) => {
          const error = platformError(thrown);
          // What `wx` was asked it answers itself.
          if (!isAsked) teller(fail, complete)(error);
          throw error;
        });
      if (success || fail || complete) swallow(socket);
      return socket;
    },
    login: () => session.login().then(() => {}),
    async logout() {
      const held = await session.detach();
      if (!held) return;
      try {
        const header = withToken({}, held.token);
        const option = { url: base + endpoints.logout, method: "POST", header };
        const { answer } = await send("request", option);
        if (answer.statusCode !== 204) throw endpointError(answer);
      } catch (error) {
        await session.restore(held);
        throw error;
      }
    },
    async session() {
      const answer: Answer = await client.request({ url: endpoints.session });
      if (answer.statusCode !== 200) throw endpointError(answer);
      session.prove();
      return answer.data as any;
    },
    scan: (code) => step(code, "scan"),
    confirmScan: (code) => step(code, "confirm").then(() => {}),
    denyScan: (code) => step(code, "deny").then(() => {}),
    async ticket(path, { reuse = false, cookie = false, baseUrl = base } = {}) {
      const { ticket, expires_in } = await post(endpoints.ticket, { path, reuse, cookie });
      const mark = path.indexOf("?") < 0 ? "?" : "&";
      const url = `${baseUrl.replace(/\/+$/, "")}${path}${mark}wxgate_ticket=${ticket}`;
      return { ticket, expires_in, url };
    },
    async phoneNumber({ detail }, option) {
      const { code } = detail;
      if (!code) throw new WxgateError("no_phone_code", "none", detail.errMsg || "");
      const data = { ...option.data, code };
      const answer: Answer = await client.request({ ...option, method: "POST", data });
      if (answer.statusCode > 399) throw endpointError(answer, answer.data);
      return answer.data as any;
    },
  };
  return client;
}

/** What became of a try. */
interface Sent {
  answer: Answer;
  error?: WxgateError;
}

function aborted(verb: Verb): WxgateError {
  return new WxgateError("aborted", "none", `${verb}:fail abort`);
}

/** Takes the mode out of the options: it is not for the platform. */
function takeMode(option: any): Mode {
  const mode = option.login ?? true;
  delete option.login;
  if (mode === true) return REQUIRED;
  if (mode === REQUIRED || mode === OPTIONAL || mode === false) return mode;
  throw new WxgateError("bad_option", "none", 'login: "required", "optional", true or false');
}

function share(
  platform: Platform,
  key: string,
  around: (key: string) => ConstructorParameters<typeof Session>[0],
): Session {
  const known = sessions.get(platform) || {};
  sessions.set(platform, known);
  return known[key] || (known[key] = new Session(around(key)));
}

/** The token must go to nobody but the gateway, nor beside the path of its base. */
function locate(base: string, given: unknown): string {
  const url = String(given);
  const whole = /^\/(?!\/)/.test(url) ? base + url : url;
  const isBeside = /[\\\x00-\x20]|\/(\.|%2e){1,2}(\/|$)/i.test(url.split(/[?#]/)[0]);
  if (whole.startsWith(base + "/") && !isBeside) return whole;
  throw new WxgateError("foreign_url", "none", `not a path, nor below ${base}`);
}

function copy(value: any): any {
  const isPlain = value && Object.getPrototypeOf(value) === Object.prototype;
  return isPlain ? { ...value } : value;
}

/** Calls back as `wx` does, where somebody wants that instead of the promise. */
function notify(option: any, promise: Promise<unknown>): void {
  const { success, fail, complete } = option;
  if (!success && !fail && !complete) return;
  promise.then(teller(success, complete), teller(fail, complete));
}

/** What fails in the one callback does not keep the other from being called. */
function teller(callback: any, complete: any): (result: unknown) => void {
  return (result) => {
    try {
      callback?.(result);
    } finally {
      complete?.(result);
    }
  };
}

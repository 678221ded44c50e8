/**
 * wxgate-client: `wx.request` and its like behind a wxgate gateway, with the login done.
 *
 * A call gets a token, is sent, and does what the gateway's errors ask for: it logs in and is
 * repeated once, or waits and is repeated, where nothing can happen twice by that.
 */

/// <reference types="miniprogram-api-typings" />

import { WxgateError, endpointError, gatewayError, type Answer } from "./error";
import { Session, pause, swallow, type Storage } from "./session";

export { WxgateError, type Action } from "./error";
export { type Storage } from "./session";

/** `wx`, `Taro` or `uni`. */
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
  /** The gateway's `[endpoints]`: `/login`, `/logout` and `/session`. */
  endpoints?: { login?: string; logout?: string; session?: string };
}

type Wx = WechatMiniprogram.Wx;
type Data = string | WechatMiniprogram.IAnyObject | ArrayBuffer;

/** A promise that can be handled like a task of `wx`, over all its tries. */
export type Pending<Result, Task> = Promise<Result> & Task;

export interface Client {
  /** As `wx.request`. Any status of the service is a success; errors are [`WxgateError`]s. */
  request<T extends Data = any>(
    option: WechatMiniprogram.RequestOption<T>,
  ): Pending<WechatMiniprogram.RequestSuccessCallbackResult<T>, WechatMiniprogram.RequestTask>;
  /** As `wx.uploadFile`; the session is looked at first, so that no upload is in vain. */
  uploadFile(
    option: WechatMiniprogram.UploadFileOption,
  ): Pending<WechatMiniprogram.UploadFileSuccessCallbackResult, WechatMiniprogram.UploadTask>;
  /** As `wx.downloadFile`. */
  downloadFile(
    option: WechatMiniprogram.DownloadFileOption,
  ): Pending<WechatMiniprogram.DownloadFileSuccessCallbackResult, WechatMiniprogram.DownloadTask>;
  /** As `wx.connectSocket`; the session is looked at first. The token is in a header. */
  connectSocket(
    option: WechatMiniprogram.ConnectSocketOption,
  ): Promise<WechatMiniprogram.SocketTask>;
  /** Logs in now. Nobody must call it: every other call does where it has to. */
  login(): Promise<void>;
  /** Ends the session. The next call begins another. */
  logout(): Promise<void>;
  /** What the gateway says of the session, which this keeps alive; logs in where there is none. */
  session(): Promise<{ expires_in: number; app_id: string }>;
}

type Verb = "request" | "uploadFile" | "downloadFile";

/** Nothing happens by these, however often they arrive (RFC 9110, section 9.2.1). */
const SAFE = /^(GET|HEAD|OPTIONS|TRACE)$/;

/** With these the gateway says that it has not forwarded the request. */
const NEVER_FORWARDED = /^(rate_limited|store_unavailable|no_upstream)$/;

/** How often a call is repeated because the gateway said `retry`. */
const RETRIES = 2;

/** A login may wait for WeChat for 8 seconds by the gateway's defaults. */
const LOGIN_TIMEOUT = 8500;

const EVENTS = ["HeadersReceived", "ChunkReceived", "ProgressUpdate"];

/** Sessions by what they run on: two clients of one app do not log in twice. */
const sessions = new WeakMap<Storage, Record<string, Session>>();

declare const wx: Wx;

export function createClient(options: Options): Client {
  const platform: Platform = options.wx || wx;
  const base = options.baseUrl.replace(/\/+$/, "");
  const socketBase = base.replace(/^http/, "ws");
  const maxWait = options.maxWait ?? 10;
  const sessionHeader = options.header || "X-3rd-Session";
  const endpoints = { login: "/login", logout: "/logout", session: "/session", ...options.endpoints };
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
      }),
  }));

  /** One try. Rejects where no answer came. */
  function send(verb: Verb, option: any, started?: (task: any) => void): Promise<Answer> {
    return new Promise((resolve, reject) => {
      let header: Record<string, string>;
      const task = platform[verb]({
        ...option,
        success: (answer: Answer) => resolve(answer.header ? answer : { ...answer, header }),
        fail: ({ errMsg }: { errMsg: string }) =>
          reject(new WxgateError("network", "retry", errMsg)),
        complete: undefined,
      });
      swallow(task);
      // Uploads and downloads show the answer's headers in this way only.
      task?.onHeadersReceived?.((received: Answer) => (header = received.header || {}));
      started?.(task);
    });
  }

  /** Makes a call of `wx` with a token, as often as need be. */
  function call(verb: Verb, option: any): any {
    let task: any;
    let abort!: () => void;
    const wanted: [string, any[]][] = [];
    let isAborted = false;
    const aborted = new Promise<never>((_, reject) => {
      abort = () => {
        isAborted = true;
        reject(new WxgateError("aborted", "none", `${verb}:fail abort`));
        task?.abort?.();
      };
    });

    async function run(): Promise<Answer> {
      const url = resolve(base, option.url);
      const isSafe = verb === "downloadFile" || SAFE.test(option.method || METHODS[verb]);
      let token = await (verb === "uploadFile" ? checked() : session.token());
      let logins = 0;
      for (let retries = 0; ; ) {
        if (isAborted) return aborted;
        const header = withToken(option.header, token);
        const answer = await send(verb, { ...option, url, header }, (started) => {
          task = started;
          wanted.forEach(([name, values]) => task?.[name]?.(...values));
        });
        const error = gatewayError(answer);
        if (!error) {
          session.used(token);
          return answer;
        }
        const wait = error.retryAfter || 1 + Math.random();
        if (error.statusCode === 401 && !logins++) {
          token = await session.other(token);
        } else if (
          error.action === "retry" &&
          (isSafe || NEVER_FORWARDED.test(error.error)) &&
          wait <= maxWait &&
          retries++ < RETRIES
        ) {
          await pause(wait);
        } else {
          throw error;
        }
      }
    }

    const promise: any = Promise.race([run(), aborted]);
    notify(option, promise);
    promise.abort = abort;
    for (const event of EVENTS) {
      for (const name of ["on" + event, "off" + event]) {
        promise[name] = (...values: any[]) => {
          wanted.push([name, values]);
          task?.[name]?.(...values);
        };
      }
    }
    return promise;
  }

  /** A token of a session that is good, as far as can be known. */
  async function checked(): Promise<string> {
    await session.token();
    if (!session.isProven()) await client.session();
    return session.token();
  }

  /** The caller's headers, and the token in place of any of their own. */
  function withToken(header: Record<string, string> = {}, token: string): object {
    const headers: Record<string, string> = {};
    for (const name of Object.keys(header)) {
      if (name.toLowerCase() !== sessionHeader.toLowerCase()) headers[name] = header[name];
    }
    return { ...headers, [sessionHeader]: token };
  }

  const client: Client = {
    request: (option) => call("request", option),
    uploadFile: (option) => call("uploadFile", option),
    downloadFile: (option) => call("downloadFile", option),
    async connectSocket(option) {
      let asked: object;
      try {
        const url = resolve(socketBase, option.url);
        asked = { ...option, url, header: withToken(option.header, await checked()) };
      } catch (error: any) {
        // What `wx` was asked it answers itself.
        option.fail?.(error);
        option.complete?.(error);
        throw error;
      }
      return platform.connectSocket(asked);
    },
    login: () => session.login().then(() => {}),
    async logout() {
      const token = await session.last();
      if (!token) return;
      const header = withToken({}, token);
      const option = { url: base + endpoints.logout, method: "POST", header };
      const answer = await send("request", option);
      if (answer.statusCode !== 204) throw endpointError(answer);
      session.forget();
    },
    async session() {
      const answer: Answer = await client.request({ url: endpoints.session });
      if (answer.statusCode !== 200) throw endpointError(answer);
      return answer.data as any;
    },
  };
  return client;
}

const METHODS: Record<string, string> = { request: "GET", uploadFile: "POST" };

function share(
  platform: Platform,
  key: string,
  around: (key: string) => ConstructorParameters<typeof Session>[0],
): Session {
  const known = sessions.get(platform) || {};
  sessions.set(platform, known);
  return known[key] || (known[key] = new Session(around(key)));
}

/** The token must go to nobody but the gateway. */
function resolve(base: string, url: string): string {
  if (/^\/(?!\/)/.test(url)) return base + url;
  if (url.startsWith(base + "/")) return url;
  throw new WxgateError("foreign_url", "none", `not a path, nor below ${base}`);
}

/** Calls back as `wx` does, where somebody wants that instead of the promise. */
function notify(option: any, promise: Promise<unknown>): void {
  const { success, fail, complete } = option;
  if (!success && !fail && !complete) return;
  promise.then(
    (result) => {
      success?.(result);
      complete?.(result);
    },
    (error) => {
      fail?.(error);
      complete?.(error);
    },
  );
}

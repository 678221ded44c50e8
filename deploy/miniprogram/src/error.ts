/**
 * What goes wrong, in one class: errors of the gateway, told from the service's by the header
 * `X-Wxgate-Error`; and those of the phone.
 */

/** What to do about an error: log in again, come back later, or neither. */
export type Action = "login" | "retry" | "none";

/** An answer as `wx.request` gives it, of any status. */
export interface Answer {
  statusCode: number;
  header?: Record<string, any>;
  data?: unknown;
}

/**
 * The actions of the gateway's errors, for where its answer cannot be read. That of any other 401,
 * as `session_expired` or `invalid_code`, is `login`.
 */
const ACTIONS: Record<string, Action> = {
  wechat_timeout: "login",
  login_unavailable: "login",
  rate_limited: "retry",
  bad_gateway: "retry",
  wechat_busy: "retry",
  store_unavailable: "retry",
  no_upstream: "retry",
  overloaded: "retry",
  gateway_timeout: "retry",
};

/** Why a call failed. Holds neither token nor code. */
export class WxgateError extends Error {
  /**
   * The gateway's word, as `session_expired`; or one of the phone's: `network` (no answer came),
   * `login_failed` (`wx.login` gave no code), `no_phone_code` (nor did the button), `no_scan_code`
   * (not the code of a login), `too_many_logins`, `aborted`, `foreign_url` (the address is not
   * the gateway's), `bad_option` (of the call), `unexpected_answer` (something between is not the
   * gateway). Of `phoneNumber` also the service's word.
   */
  readonly error: string;
  readonly action: Action;
  /** For support: it stands in the gateway's log. */
  readonly requestId?: string;
  /** 0 where no answer came. */
  readonly statusCode: number;
  /** Seconds to wait before the next try. */
  readonly retryAfter?: number;
  /** What `wx` said, or the gateway's message. */
  readonly errMsg: string;

  constructor(
    error: string,
    action: Action,
    errMsg: string,
    details: { requestId?: string; statusCode?: number; retryAfter?: number } = {},
  ) {
    super(`${error}: ${errMsg}`);
    this.name = "WxgateError";
    this.error = error;
    this.action = action;
    this.errMsg = errMsg;
    this.requestId = details.requestId;
    this.statusCode = details.statusCode || 0;
    this.retryAfter = details.retryAfter;
  }
}

/** What a function of `wx` failed with. */
export function platformError(thrown: any, error = "network"): WxgateError {
  if (thrown instanceof WxgateError) return thrown;
  return new WxgateError(error, "retry", String((thrown && (thrown.errMsg || thrown.message)) || thrown));
}

/** Whether an answer is an error of the gateway, by its headers; undefined where there are none. */
export function isGatewayError(answer: Answer): boolean | undefined {
  if (header(answer, "x-wxgate-error")) return true;
  return Object.keys(answer.header || {}).length || answer.statusCode < 400 ? false : undefined;
}

/**
 * The gateway's error in an answer; undefined where the service answered. `chunks` are the body
 * where the answer came in chunks and has no data of its own.
 */
export function gatewayError(answer: Answer, chunks: any[] = []): WxgateError | undefined {
  if (isGatewayError(answer) === false) return undefined;
  const { error, action, message, request_id: id } = body(answer.data, chunks);
  // Some phones show no headers of an upload's answer at all; then its whole shape counts.
  const isOurs = answer.statusCode > 399 && isAction(action) && typeof error === "string" && id;
  const word = header(answer, "x-wxgate-error") || (isOurs && error);
  if (!word) return undefined;
  // The action decides, also for a word that is newer than this client.
  const unknown = answer.statusCode === 401 ? "login" : "none";
  const known = [action, ACTIONS[word], unknown].find(isAction);
  return describe(answer, word, known, typeof message === "string" ? message : "", id);
}

function isAction(value: unknown): boolean {
  return /^(login|retry|none)$/.test(value as string);
}

/**
 * The error in an answer of the gateway's own endpoints that is no success; or of a service, whose
 * body `given` has a word and an action of its own.
 */
export function endpointError(answer: Answer, given?: any): WxgateError {
  const { error, action } = given || {};
  const known = [action, answer.statusCode > 499 ? "retry" : "none"].find(isAction);
  return gatewayError(answer) || describe(answer, error || "unexpected_answer", known, "");
}

function describe(
  answer: Answer,
  error: string,
  action: Action,
  message: string,
  id?: unknown,
): WxgateError {
  return new WxgateError(error, action, message || `HTTP ${answer.statusCode}`, {
    statusCode: answer.statusCode,
    requestId: header(answer, "x-request-id") || (typeof id === "string" ? id : undefined),
    retryAfter: Number(header(answer, "retry-after")) || undefined,
  });
}

/** The fields of an error's body, which may be text, bytes, in chunks, or unreadable. */
function body(data: any, chunks: any[]): any {
  try {
    const bytes = chunks.length ? chunks : data.byteLength >= 0 && [data];
    const content = bytes ? decode(bytes) : data;
    return (typeof content === "string" ? JSON.parse(content) : content) || {};
  } catch (_) {
    return {};
  }
}

/** The text of bytes in UTF-8; phones have no `TextDecoder`. Fails where they are none. */
function decode(chunks: any[]): string {
  let escaped = "";
  for (const chunk of chunks) {
    const bytes = new Uint8Array(chunk.byteLength >= 0 ? chunk : []);
    bytes.forEach((byte) => (escaped += "%" + (byte + 256).toString(16).slice(1)));
  }
  return decodeURIComponent(escaped);
}

/** HTTP/2 and some phones give the names in lower case, others as they were sent; some give lists. */
function header(answer: Answer, name: string): string | undefined {
  const headers = answer.header || {};
  const key = Object.keys(headers).find((key) => key.toLowerCase() === name);
  const value = key && headers[key];
  return Array.isArray(value) ? value[0] : value;
}

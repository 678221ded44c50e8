/**
 * What goes wrong, in one class: errors of the gateway, told from the service's by the header
 * `X-Wxgate-Error`; and those of the phone.
 */

/** What to do about an error: log in again, come back later, or neither. */
export type Action = "login" | "retry" | "none";

/** An answer as `wx.request` gives it, of any status. */
export interface Answer {
  statusCode: number;
  header?: Record<string, string>;
  data?: unknown;
}

/** The actions of the gateway's errors, for where its answer cannot be read. */
const ACTIONS: Record<string, Action> = {
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
  gateway_timeout: "retry",
};

/** Why a call failed. Holds neither token nor code. */
export class WxgateError extends Error {
  /**
   * The gateway's word, as `session_expired`; or one of the phone's: `network` (no answer came),
   * `login_failed` (`wx.login` gave no code), `too_many_logins`, `aborted`, `foreign_url` (the
   * address is not the gateway's), `unexpected_answer` (something between is not the gateway).
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

/** The gateway's error in an answer; undefined where the service answered. */
export function gatewayError(answer: Answer): WxgateError | undefined {
  const { error, action, message, request_id: id } = body(answer.data);
  // Some phones show no headers of an upload's answer at all; then its whole shape counts.
  const isOurs = answer.statusCode > 399 && action && ACTIONS[error] === action && id;
  const isHeadless = !Object.keys(answer.header || {}).length;
  const word = header(answer, "x-wxgate-error") || (isHeadless && isOurs && error);
  if (!word) return undefined;
  const known = /^(login|retry|none)$/.test(action) ? action : ACTIONS[word] || "none";
  return describe(answer, word, known, typeof message === "string" ? message : "");
}

/** The error in an answer of the gateway's own endpoints that is no success. */
export function endpointError(answer: Answer): WxgateError {
  const action = answer.statusCode > 499 ? "retry" : "none";
  return gatewayError(answer) || describe(answer, "unexpected_answer", action, "");
}

function describe(answer: Answer, error: string, action: Action, message: string): WxgateError {
  return new WxgateError(error, action, message || `HTTP ${answer.statusCode}`, {
    statusCode: answer.statusCode,
    requestId: header(answer, "x-request-id"),
    retryAfter: Number(header(answer, "retry-after")) || undefined,
  });
}

/** The fields of an error's body, which may be unreadable. */
function body(data: any): any {
  try {
    return (typeof data === "string" ? JSON.parse(data) : data) || {};
  } catch (_) {
    return {};
  }
}

/** HTTP/2 and some phones give the names in lower case, others as they were sent. */
function header(answer: Answer, name: string): string | undefined {
  const headers = answer.header || {};
  const key = Object.keys(headers).find((key) => key.toLowerCase() === name);
  return key && headers[key];
}

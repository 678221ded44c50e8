/**
 * The session: one token for the whole app, one login at a time.
 *
 * The end that is remembered is a hint that avoids a useless request; whether a session is over
 * says the gateway alone. A token that somebody else of the app has stored since counts, too.
 */

import { WxgateError, endpointError, type Answer } from "./error";

/** What is kept between two starts of the app. */
interface Held {
  token: string;
  /** Seconds that the session lasts if it is not used. */
  expiresIn: number;
  /** When it ends, in milliseconds since 1970. */
  endsAt: number;
}

/** Where the token is kept: `wx` itself, or something that behaves like it. */
export interface Storage {
  getStorageSync(key: string): any;
  setStorageSync(key: string, value: any): void;
  removeStorageSync(key: string): void;
}

/** What a session needs of its surroundings. */
export interface Surroundings {
  storage: Storage;
  /** The name of what is stored. */
  key: string;
  /** Asks for a code, as `wx.login` does. */
  login(option: object): unknown;
  /** Trades a code with the gateway; rejects where no answer came. */
  trade(code: string): Promise<Answer>;
  /** Seconds that are waited at most; what takes longer is an error at once. */
  maxWait: number;
}

/** A lost answer is asked for again for so long: the gateway's `login.replay_window`. */
const REPLAY_WINDOW = 10_000;

/** `wx.login` is given up after so long, should it never say anything. */
const CODE_TIMEOUT = 15_000;

/** Calls of `wx.login` in a minute. WeChat allows four in a second, and dislikes loops. */
const CODES_A_MINUTE = 10;

/** A use within so long shows that the session is good. */
const PROVEN = 10_000;

export class Session {
  private held?: Held;
  private savedEnd = 0;
  private provenAt = 0;
  private pending?: Promise<string>;
  private codes: number[] = [];
  private failures = 0;
  private failed?: { error: WxgateError; until: number };

  constructor(private readonly around: Surroundings) {}

  /** The token; logs in where there is none, or it must be over. */
  token(): Promise<string> {
    return this.other();
  }

  /** A token other than this one, which was refused. */
  other(refused?: string): Promise<string> {
    if (!this.held || this.held.token === refused || !isLive(this.held)) {
      this.held = this.load();
    }
    const { held } = this;
    const isGood = held && held.token !== refused && isLive(held);
    return isGood ? Promise.resolve(held.token) : this.login();
  }

  /** Logs in, together with everybody who wants to right now. */
  login(): Promise<string> {
    return this.pending || (this.pending = this.logIn());
  }

  /** The token was used: its end has moved. */
  used(token: string): void {
    const { held } = this;
    if (!held || held.token !== token) return;
    this.provenAt = Date.now();
    held.endsAt = this.provenAt + held.expiresIn * 1000;
    // Storage is slow: it is not written for every request.
    if (held.endsAt - this.savedEnd > held.expiresIn * 100) this.save(held);
  }

  /** Whether it was just seen to be good. */
  isProven(): boolean {
    return Date.now() - this.provenAt < PROVEN;
  }

  /** The token to end, once a login under way is over. */
  async last(): Promise<string | undefined> {
    if (this.pending) await this.pending.catch(() => {});
    const held = this.held || this.load();
    return held && held.token;
  }

  /** It has ended. */
  forget(): void {
    this.held = undefined;
    this.provenAt = 0;
    attempt(() => this.around.storage.removeStorageSync(this.around.key));
  }

  private async logIn(): Promise<string> {
    try {
      await this.backOff();
      const held = await this.exchange();
      this.failures = 0;
      this.failed = undefined;
      this.held = held;
      this.provenAt = Date.now();
      this.save(held);
      return held.token;
    } catch (thrown) {
      const error = thrown as WxgateError;
      if (error !== this.failed?.error) {
        const wait = Math.max(error.retryAfter || 0, Math.min(60, 2 ** ++this.failures));
        this.failed = { error, until: Date.now() + wait * 1000 };
      }
      throw error;
    } finally {
      this.pending = undefined;
    }
  }

  /** Waits as long as the last failure asks for, or fails in the same way. */
  private async backOff(): Promise<void> {
    const { failed } = this;
    const wait = failed ? (failed.until - Date.now()) / 1000 : 0;
    if (failed && wait > this.around.maxWait) throw failed.error;
    if (wait > 0) await pause(wait);
  }

  private async exchange(): Promise<Held> {
    let code = await this.code();
    for (let freshCodes = 0; ; freshCodes++) {
      const sentAt = Date.now();
      let answer: Answer;
      try {
        answer = await this.around.trade(code);
      } catch (lost) {
        // The gateway gives the same code the same answer, for a while.
        if (Date.now() + 1000 - sentAt > REPLAY_WINDOW) throw lost;
        await pause(1);
        answer = await this.around.trade(code);
      }
      const { token, expires_in: expiresIn } = (answer.data || {}) as Record<string, any>;
      if (answer.statusCode === 200 && token && expiresIn > 0) {
        return { token, expiresIn, endsAt: Date.now() + expiresIn * 1000 };
      }
      const error = endpointError(answer);
      const most = { login: 1, retry: 3, none: 0 }[error.action];
      const wait = error.retryAfter || (error.action === "login" ? 0 : 1 + Math.random());
      if (freshCodes >= most || wait > this.around.maxWait) throw error;
      await pause(wait);
      code = await this.code();
    }
  }

  private code(): Promise<string> {
    const now = Date.now();
    this.codes = this.codes.filter((at) => now - at < 60_000);
    if (this.codes.length >= CODES_A_MINUTE) {
      const retryAfter = Math.ceil((this.codes[0] + 60_000 - now) / 1000);
      const message = `${CODES_A_MINUTE} in a minute`;
      throw new WxgateError("too_many_logins", "retry", message, { retryAfter });
    }
    this.codes.push(now);
    return new Promise((resolve, reject) => {
      const fail = ({ errMsg }: { errMsg: string }) =>
        reject(new WxgateError("login_failed", "retry", errMsg));
      const timer = setTimeout(() => fail({ errMsg: "login:fail no answer" }), CODE_TIMEOUT);
      swallow(
        this.around.login({
          timeout: CODE_TIMEOUT,
          success: ({ code, errMsg }: { code?: string; errMsg: string }) =>
            code ? resolve(code) : fail({ errMsg: errMsg || "login:fail no code" }),
          fail,
          complete: () => clearTimeout(timer),
        }),
      );
    });
  }

  private load(): Held | undefined {
    const held = attempt(() => this.around.storage.getStorageSync(this.around.key));
    if (!held || !held.token) return undefined;
    this.savedEnd = held.endsAt;
    return held;
  }

  private save(held: Held): void {
    this.savedEnd = held.endsAt;
    attempt(() => this.around.storage.setStorageSync(this.around.key, { ...held }));
  }
}

function isLive(held: Held): boolean {
  return Date.now() < held.endsAt;
}

/** Storage may be full or forbidden; then the token lives as long as the app runs. */
function attempt<T>(storage: () => T): T | undefined {
  try {
    return storage();
  } catch (_) {
    return undefined;
  }
}

/** Taro's functions reject besides calling back, and nobody listens. */
export function swallow(result: any): void {
  if (result && result.catch) result.catch(() => {});
}

export function pause(seconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, seconds * 1000));
}

/**
 * The session: one token for the whole app, one login at a time.
 *
 * The end that is remembered is a hint that avoids a useless request; whether a session is over
 * says the gateway alone. A token that somebody else of the app has stored since counts, too.
 */

import { WxgateError, endpointError, platformError, type Answer } from "./error";
import { ask, attempt, pause } from "./platform";

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
  login(option: object): any;
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

/** Seconds that a call which needs no session waits for a login under way. */
const GUEST_WAIT = 2;

/** The session was seen to be good: it still is for so long. */
const PROVEN = 10_000;

export class Session {
  /** Counts logouts: a call from before one must not log in again. */
  logouts = 0;

  // The token.
  private held?: Held;
  private savedEnd = 0;
  private provenAt = 0;
  private readonly refused = new Set<string>();

  // The login under way, and those before it; and a logout that waits for it.
  private pending?: Promise<string>;
  private leaving?: Promise<unknown>;
  private codes: number[] = [];
  private failures = 0;
  private failed?: { error: WxgateError; at: number; wait: number };

  constructor(private readonly around: Surroundings) {}

  /** The token; logs in where there is none, or it must be over. */
  async token(): Promise<string> {
    if (this.leaving) await this.leaving;
    return (!this.pending && this.current()) || this.login();
  }

  /**
   * The token at hand, for a call that begins no login. A login under way may bring one soon; not
   * where the last one failed, nor for what begins after a logout. A call from before a logout,
   * when `logouts` had that value, gets none: the next session may be another user's.
   */
  async atHand(logouts: number): Promise<string | undefined> {
    const { pending } = this;
    if (pending && !this.current() && !this.failures) {
      await Promise.race([pending.catch(() => {}), pause(GUEST_WAIT)]);
    }
    return this.leaving || this.logouts !== logouts ? undefined : this.current();
  }

  /** The token, where there is one that may be good: from storage where ours is not. */
  current(): string | undefined {
    if (!this.isUsable(this.held)) this.held = this.load();
    return this.isUsable(this.held) ? this.held!.token : undefined;
  }

  /** Logs in, together with everybody who wants to right now. */
  login(): Promise<string> {
    return this.pending || (this.pending = this.logIn());
  }

  /** The gateway does not accept this token. One that is newer stays. */
  refuse(token: string): void {
    this.refused.add(token);
    this.provenAt = 0;
    if (this.held?.token === token) this.held = undefined;
    if (this.load()?.token === token) this.forget();
  }

  /** The gateway has taken the token: its end has moved. */
  used(token: string): void {
    const { held } = this;
    if (!held || held.token !== token) return;
    held.endsAt = Date.now() + held.expiresIn * 1000;
    // Storage is slow: it is not written for every request.
    if (held.endsAt - this.savedEnd > held.expiresIn * 100) this.save(held);
  }

  /** The gateway has just said that the session is good. */
  prove(): void {
    this.provenAt = Date.now();
  }

  isProven(): boolean {
    return isWithin(this.provenAt, PROVEN);
  }

  /** Takes the token out, once a login under way is over. */
  async detach(): Promise<Held | undefined> {
    this.logouts++;
    if (this.pending) await (this.leaving = this.pending.catch(() => {}));
    this.leaving = undefined;
    const held = this.held || this.load();
    this.held = undefined;
    this.provenAt = 0;
    this.forget();
    return held;
  }

  /** Puts it back, where there is no other. */
  async restore(held: Held): Promise<void> {
    if (this.pending) await this.pending.catch(() => {});
    if (this.current()) return;
    this.held = held;
    this.save(held);
  }

  private async logIn(): Promise<string> {
    try {
      await this.backOff();
      const held = await this.exchange();
      this.failures = 0;
      this.failed = undefined;
      this.held = held;
      this.prove();
      this.save(held);
      return held.token;
    } catch (thrown) {
      const error = platformError(thrown);
      if (error !== this.failed?.error) {
        // Whoever was offline may be back at any time.
        const most = error.error === "network" ? this.around.maxWait : 60;
        const wait = Math.max(error.retryAfter || 0, Math.min(most, 2 ** ++this.failures));
        this.failed = { error, at: Date.now(), wait: wait * 1000 };
      }
      throw error;
    } finally {
      this.pending = undefined;
    }
  }

  /** Waits as long as the last failure asks for, or fails in the same way. */
  private async backOff(): Promise<void> {
    const { failed } = this;
    if (!failed || !isWithin(failed.at, failed.wait)) return;
    const left = (failed.at + failed.wait - Date.now()) / 1000;
    if (left > this.around.maxWait) throw failed.error;
    await pause(left);
  }

  private async exchange(): Promise<Held> {
    let code = await this.code();
    for (let freshCodes = 0; ; freshCodes++) {
      const sentAt = Date.now();
      const answer = await this.around.trade(code).catch(async (lost) => {
        await pause(1);
        // The gateway gives the same code the same answer, for a while.
        if (!isWithin(sentAt, REPLAY_WINDOW)) throw lost;
        return this.around.trade(code);
      });
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

  private async code(): Promise<string> {
    this.codes = this.codes.filter((at) => isWithin(at, 60_000));
    if (this.codes.length >= CODES_A_MINUTE) {
      const retryAfter = Math.ceil((this.codes[0] + 60_000 - Date.now()) / 1000);
      const message = `${CODES_A_MINUTE} in a minute`;
      throw new WxgateError("too_many_logins", "retry", message, { retryAfter });
    }
    this.codes.push(Date.now());
    let timer: any;
    try {
      const result: any = await new Promise((success, fail) => {
        timer = setTimeout(() => fail({ errMsg: "login:fail no answer" }), CODE_TIMEOUT);
        const login = (callbacks: object) =>
          this.around.login({ timeout: CODE_TIMEOUT, ...callbacks });
        ask(login, "code").then(success, fail);
      });
      if (result.code) return result.code;
      throw result;
    } catch (thrown) {
      throw platformError(thrown, "login_failed");
    } finally {
      clearTimeout(timer);
    }
  }

  private isUsable(held?: Held): boolean {
    return !!held && !this.refused.has(held.token) && Date.now() < held.endsAt;
  }

  private load(): Held | undefined {
    const held = attempt(() => this.around.storage.getStorageSync(this.around.key));
    if (!held || typeof held.token !== "string") return undefined;
    this.savedEnd = held.endsAt;
    return { ...held };
  }

  private forget(): void {
    attempt(() => this.around.storage.removeStorageSync(this.around.key));
  }

  // Storage may be full or forbidden; then the token lives as long as the app runs.
  private save(held: Held): void {
    this.savedEnd = held.endsAt;
    attempt(() => this.around.storage.setStorageSync(this.around.key, { ...held }));
  }
}

/** A phone's clock may be set back: what lies in the future is long ago. */
function isWithin(since: number, milliseconds: number): boolean {
  const age = Date.now() - since;
  return age >= 0 && age < milliseconds;
}

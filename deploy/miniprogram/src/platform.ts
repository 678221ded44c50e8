/** How the functions of a platform answer, which is not everywhere as it is in `wx`. */

/**
 * Calls a function of the platform. It may answer by callback, by promise, or by both; the first
 * answer counts. A promise answers with a value that has `key`, or `errMsg`. `started` gets what
 * the function returns, or the task that its promise gives.
 */
export function ask(
  invoke: (callbacks: object) => any,
  key: "statusCode" | "code",
  started: (task: any) => void = () => {},
): Promise<any> {
  return new Promise((success, fail) => {
    const task = invoke({ success, fail, complete: undefined });
    started(task);
    // Promises of wrappers may say nothing, or give the task: then the callbacks answer.
    const settle = (value: any) => {
      if (value && (value[key] || value.errMsg)) success(value);
      else if (value && value.abort) started(value);
    };
    if (task && task.then) task.then(settle, fail);
  });
}

/** What a platform or a page gets wrong must not stop the call. */
export function attempt<T>(action: () => T): T | undefined {
  try {
    return action();
  } catch (_) {
    return undefined;
  }
}

/** Taro's functions reject besides calling back, and nothing handles that. */
export function swallow(result: any): void {
  if (result && result.catch) result.catch(() => {});
}

export function pause(seconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, seconds * 1000));
}

/**
 * The task that a page has of a call. It is there before the platform's own task, and stays the
 * same when the call is repeated. Its listeners get the events of the service's response only:
 * those of a gateway's error are dropped, for the page gets the error or another response.
 */

import { isGatewayError } from "./error";
import { attempt } from "./platform";

const HEADERS = "HeadersReceived";
const CHUNK = "ChunkReceived";
const EVENTS = [HEADERS, CHUNK, "ProgressUpdate"];

/**
 * Events are held back until it is known whose response they belong to: until the headers are
 * there, as a rule. A response without them is the service's where it has more events than these.
 */
const MAX_HELD = 32;

type Listener = (event: any) => void;

/** One try of a call, and what is known of its response before the end. */
export interface Try {
  /** The platform has returned its task. */
  started(task: any): void;
  /** The headers that came by event. */
  header(): object;
  /** The chunks of a body that are held back. */
  chunks(): unknown[];
  /** It is known whose response it was. */
  ended(isError: boolean): void;
}

export interface Task {
  isAborted: boolean;
  /** The methods of a task, over all tries. */
  methods: Record<string, (listener?: Listener) => void>;
  begin(isChunked: boolean): Try;
}

export function createTask(): Task {
  const listeners: Record<string, Listener[]> = {};
  let latest: any;
  let watch = (_name: string) => {};
  let sent = -1;

  function tell(name: string, event: any): void {
    // A repeated upload begins at 0 again.
    if (event.totalBytesSent <= sent) return;
    sent = event.totalBytesSent ?? sent;
    for (const listener of task.isAborted ? [] : listeners[name] || []) {
      try {
        listener(event);
      } catch (error) {
        // It is the page's, as it is where `wx` calls.
        setTimeout(() => {
          throw error;
        });
      }
    }
  }

  function begin(isChunked: boolean): Try {
    let header = {};
    const held: [string, any][] = [];
    let isError: boolean | undefined;
    let isOver = false;

    function judge(verdict?: boolean): void {
      isError = verdict;
      if (verdict === false) held.splice(0).forEach(([name, event]) => tell(name, event));
    }

    function hear(name: string, event: any): void {
      if (name === HEADERS && !isOver) {
        header = event.header || {};
        judge(isGatewayError(event));
      }
      const isFull = held.length >= MAX_HELD;
      if (isFull && isError === undefined) judge(false);
      // How much of an upload is sent is no part of a response.
      if (isError === false || event.totalBytesSent >= 0) tell(name, event);
      else if (!isFull) held.push([name, event]);
    }

    return {
      started(platformTask) {
        if (!platformTask) return;
        const watched: Record<string, boolean> = {};
        latest = platformTask;
        watch = (name) => {
          if (watched[name]) return;
          watched[name] = true;
          attempt(() => platformTask["on" + name]?.((event: any) => hear(name, event || {})));
        };
        watch(HEADERS);
        if (isChunked) watch(CHUNK);
        Object.keys(listeners).forEach(watch);
      },
      header: () => header,
      chunks: () => held.filter(([name]) => name === CHUNK).map(([, event]) => event.data),
      ended(verdict) {
        isOver = true;
        judge(verdict);
      },
    };
  }

  const task: Task = {
    isAborted: false,
    methods: {
      abort() {
        task.isAborted = true;
        latest?.abort?.();
      },
    },
    begin,
  };
  for (const name of EVENTS) {
    task.methods["on" + name] = (listener) => {
      listeners[name] = (listeners[name] || []).concat(listener!);
      watch(name);
    };
    task.methods["off" + name] = (listener) => {
      listeners[name] = (listeners[name] || []).filter((other) => listener && other !== listener);
    };
  }
  return task;
}

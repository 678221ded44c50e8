/** The code of a scan: what a page is opened with, and what `wx.scanCode` reads. */

import { attempt } from "./platform";

/**
 * What `onLoad`, `onLaunch` or `onShow` is called with; or a text: the id, `scene`, `q`, or what
 * `wx.scanCode` gives as `path` or `result`.
 */
export type ScanCode = string | { scene?: unknown; q?: unknown; query?: Record<string, any> };

/** An id alone, at the end of a URL, or as the scene in a path. */
const ID = /(?:^|\/|[?&]scene=)([\w-]{22,32})$/;

/**
 * The id of the scan that a code is for; undefined if the code is for something else. The text of
 * another code may look like an id.
 */
export function scanId(code: ScanCode): string | undefined {
  // `onLaunch` has a number as `scene`, which says where the app was opened.
  const { scene, q }: any = (code as any).query || code;
  const text = typeof code === "string" ? code : String(scene || q);
  const found = ID.exec(attempt(() => decodeURIComponent(text)) || "");
  return found ? found[1] : undefined;
}

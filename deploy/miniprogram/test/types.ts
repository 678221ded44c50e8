/** What a caller may write, and what not: read by the compiler only. */

import { createClient, scanId, WxgateError, type Action, type Client, type LoginMode } from "../dist/index";

interface Order {
  id: number;
}

declare const tapped: WechatMiniprogram.ButtonGetPhoneNumber;

const client: Client = createClient({ baseUrl: "https://api.example.com", wx });
createClient({ baseUrl: "https://api.example.com", appId: "wx1", storage: wx, maxWait: 5 });

export async function calls(): Promise<void> {
  const { data, statusCode } = await client.request<Order[]>({ url: "/orders", method: "GET" });
  const first: number = data[0].id + statusCode;
  client.request({ url: "/orders", success: ({ data }) => data, fail: ({ errMsg }) => errMsg });
  const task = client.request({ url: "/orders", enableChunked: true });
  task.onChunkReceived(({ data }) => data.byteLength);
  task.abort();
  const upload = client.uploadFile({ url: "/photos", filePath: "wxfile://x", name: "photo" });
  upload.onProgressUpdate(({ progress }) => progress);
  const text: string = (await upload).data;
  const path: string = (await client.downloadFile({ url: "/photo" })).tempFilePath;
  const socket = await client.connectSocket({ url: "/live", protocols: ["v1"] });
  socket.send({ data: "hello" });
  const { expires_in, app_id } = await client.session();
  const modes: LoginMode[] = ["required", "optional", true, false];
  for (const login of modes) await client.request<Order[]>({ url: "/orders", login });
  await client.uploadFile({ url: "/photos", filePath: "wxfile://x", name: "photo", login: "optional" });
  await client.downloadFile({ url: "/photo", login: false });
  await client.connectSocket({ url: "/live", login: "optional" });
  const { phone_number } = await client.phoneNumber(tapped, { url: "/phone", data: { order: 7 }, timeout: 5 });
  const bound: boolean = (await client.phoneNumber<{ bound: boolean }>(tapped, { url: "/phone" })).bound;
  const id: string | undefined = scanId({ scene: "x" }) || scanId(wx.getEnterOptionsSync());
  const { browser, address, since } = await client.scan(id || "x");
  await client.confirmScan({ q: "x" }).then(() => client.denyScan("x"));
  const { url, ticket } = await client.ticket("/h5/", { reuse: true, cookie: true, baseUrl: "https://h5.example.com" });
  void [browser.length, address.length, since.length, url.length, ticket.length];
  await client.login();
  await client.logout();
  void [phone_number.length, bound, first, text, path, expires_in + 1, app_id.length];
}

export function why(error: unknown): Action | undefined {
  if (!(error instanceof WxgateError)) return undefined;
  const known: [string, string | undefined, number] = [error.error, error.requestId, error.statusCode];
  void known;
  return error.action;
}

export function mistakes(): void {
  // @ts-expect-error a gateway is needed
  createClient({});
  // @ts-expect-error a url is needed
  client.request({ method: "GET" });
  // @ts-expect-error WeChat has no PATCH
  client.request({ url: "/", method: "PATCH" });
  // @ts-expect-error no such mode
  client.request({ url: "/", login: "none" });
  // @ts-expect-error it is always a POST
  client.phoneNumber(tapped, { url: "/", method: "GET" });
  // @ts-expect-error a code is needed
  client.scan();
  // @ts-expect-error no such option
  client.ticket("/", { once: true });
  // @ts-expect-error a file is needed
  client.uploadFile({ url: "/", name: "photo" });
}

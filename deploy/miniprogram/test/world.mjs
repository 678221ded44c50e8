/** A gateway, its simulated WeChat and a service behind it, as processes and sockets. */

import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, writeFileSync } from "node:fs";
import http from "node:http";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { WebSocketServer } from "ws";

const REPOSITORY = join(dirname(fileURLToPath(import.meta.url)), "../../..");
const APP = "wx0123456789abcdef";

/** The built program; cargo knows where it is. */
const program = (() => {
  if (process.env.WXGATE) return process.env.WXGATE;
  const options = { cwd: REPOSITORY, encoding: "utf8", maxBuffer: 1 << 26 };
  const built = spawnSync("cargo", ["build", "--locked", "--bin", "wxgate", "--message-format=json"], options);
  const paths = built.stdout.split("\n").filter(Boolean).map((line) => JSON.parse(line).executable);
  const path = paths.findLast((path) => path);
  if (!path) throw new Error(`wxgate cannot be built:\n${built.stderr}`);
  return path;
})();

export class World {
  #processes = [];
  #closers = [];
  #directory = mkdtempSync(join(tmpdir(), "wxgate-"));
  /** What the service was asked, as the gateway forwarded it. */
  seen = [];

  /** `keys` are lines of the configuration beside those that are always there. */
  static async start(keys = "") {
    const world = new World();
    world.keys = keys;
    world.wechat = await world.#run("stdout", ["sandbox", "--listen", "127.0.0.1:0"]);
    world.service = await world.#serve();
    await world.startGateway("127.0.0.1:0");
    return world;
  }

  async startGateway(listen = this.gateway) {
    const file = join(this.#directory, "gateway.toml");
    writeFileSync(
      file,
      `${this.keys}
      server.listen = "${listen}"
      admin.listen = "127.0.0.1:0"
      wechat.base_url = "http://${this.wechat}"
      log.access = "off"
      [[app]]
      app_id = "${APP}"
      app_secret = { env = "APP_SECRET" }
      [[upstream]]
      name = "service"
      servers = ["${this.service}"]
      [[upstream]]
      name = "nobody"
      servers = ["127.0.0.1:1"]
      [[route]]
      path = "/"
      upstream = "service"
      [[route]]
      path = "/socket"
      upstream = "service"
      websocket = true
      [[route]]
      path = "/optional"
      upstream = "service"
      auth = "optional"
      websocket = true
      [[route]]
      path = "/limited"
      upstream = "service"
      rate_per_user = "1/s"
      [[route]]
      path = "/nobody"
      upstream = "nobody"
      `,
    );
    this.gateway = await this.#run("stderr", ["run", "-c", file]);
    this.baseUrl = `http://${this.gateway}`;
  }

  /** Ends the gateway and with it every session; nobody answers until another is started. */
  async stopGateway() {
    const gateway = this.#processes.pop();
    gateway.kill("SIGINT");
    await once(gateway, "exit");
  }

  /** How often WeChat was asked. */
  async exchanges() {
    const stats = await fetch(`http://${this.wechat}/sandbox/stats`);
    return (await stats.json()).exchanges;
  }

  /** Ends a session behind its owner's back. */
  async revoke(token) {
    await fetch(`${this.baseUrl}/logout`, { method: "POST", headers: { "X-3rd-Session": token } });
  }

  close() {
    this.#processes.forEach((process) => process.kill("SIGKILL"));
    this.#closers.forEach((close) => close());
  }

  async #run(output, parameters) {
    const child = spawn(program, parameters, {
      stdio: ["ignore", output === "stdout" ? "pipe" : "ignore", output === "stderr" ? "pipe" : "inherit"],
      env: { ...process.env, APP_SECRET: "sandbox-secret" },
    });
    this.#processes.push(child);
    const shown = [];
    for await (const line of createInterface({ input: child[output] })) {
      shown.push(line);
      const address = /127\.0\.0\.1:\d+/.exec(line);
      if (address) {
        child[output].resume();
        return address[0];
      }
    }
    throw new Error(`wxgate ${parameters[0]} does not start:\n${shown.join("\n")}`);
  }

  /**
   * Says what it was asked; `/status/503` is a service that says so itself, `/phone` one that gets
   * phone numbers for codes, except for the code `used`.
   */
  async #serve() {
    const server = http.createServer(async (request, response) => {
      const chunks = [];
      for await (const chunk of request) chunks.push(chunk);
      const { method, url, headers } = request;
      const asked = { method, url, headers, body: Buffer.concat(chunks).toString() };
      this.seen.push(asked);
      if (url === "/phone") {
        const isUsed = JSON.parse(asked.body).code === "used";
        const error = { error: "invalid_phone_code", action: "none" };
        response.writeHead(isUsed ? 422 : 200, { "Content-Type": "application/json" });
        response.end(JSON.stringify(isUsed ? error : { phone_number: "13800138000" }));
        return;
      }
      const [, status] = /^\/status\/(\d+)/.exec(url) || [];
      response.writeHead(Number(status) || 200, { "Content-Type": "application/json" });
      response.end(JSON.stringify(asked));
    });
    const sockets = new WebSocketServer({ server });
    sockets.on("connection", (socket, request) => {
      this.seen.push({ method: "CONNECT", url: request.url, headers: request.headers });
      socket.on("message", (data) => socket.send(data.toString()));
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    this.#closers.push(() => {
      sockets.clients.forEach((socket) => socket.terminate());
      server.closeAllConnections();
      server.close();
    });
    return `127.0.0.1:${server.address().port}`;
  }
}

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { transformSync } from "esbuild";
import * as module from "../dist/wxgate-client.mjs";

const read = (path) => readFileSync(new URL(`../${path}`, import.meta.url), "utf8");

test("it has under 5.5 KB, minified and compressed", () => {
  for (const [file, format] of [["wxgate-client.js", "cjs"], ["wxgate-client.mjs", "esm"]]) {
    const { code } = transformSync(read(`dist/${file}`), { minify: true, format });
    const size = gzipSync(code, { level: 9 }).length;
    assert.ok(size < 5632, `${file}: ${size} bytes`);
  }
});

test("it is one module for CommonJS and ES", () => {
  const required = createRequire(import.meta.url)("../dist/wxgate-client.js");
  assert.deepEqual(Object.keys(required).sort(), ["WxgateError", "createClient", "scanId"]);
  assert.deepEqual(Object.keys(module).sort(), ["WxgateError", "createClient", "scanId"]);
});

test("it needs nothing that old phones lack, and no other package", () => {
  const text = read("dist/wxgate-client.js");
  transformSync(text, { target: "es2015" });
  assert.doesNotMatch(text, /\brequire\(|\basync |\?\.|\?\?|\.\.\.[a-z]+ }/);
  assert.equal(JSON.parse(read("package.json")).dependencies, undefined);
});

test("its types reach those who have it from a registry", () => {
  const root = fileURLToPath(new URL("..", import.meta.url));
  const app = mkdtempSync(join(tmpdir(), "wxgate-types-"));
  mkdirSync(join(app, "node_modules/wxgate-client"), { recursive: true });
  for (const part of ["dist", "package.json"]) {
    cpSync(join(root, part), join(app, "node_modules/wxgate-client", part), { recursive: true });
  }
  const typings = "node_modules/miniprogram-api-typings";
  cpSync(join(root, typings), join(app, typings), { recursive: true });
  const text = readFileSync(join(root, "test/types.ts"), "utf8").replace("../dist/index", "wxgate-client");
  writeFileSync(join(app, "app.ts"), text);
  const tsc = join(root, "node_modules/.bin/tsc");
  for (const [module, resolution] of [["esnext", "bundler"], ["node16", "node16"]]) {
    const how = ["--noEmit", "--strict", "--lib", "es2020", "--module", module, "--moduleResolution", resolution];
    const { status, stdout } = spawnSync(tsc, [...how, "app.ts"], { cwd: app, encoding: "utf8" });
    assert.equal(status, 0, stdout);
  }
});

test("the example has the client that is built here", () => {
  const is = read("example/wxgate-client.js") === read("dist/wxgate-client.js");
  assert.ok(is, "run: npm run example");
});

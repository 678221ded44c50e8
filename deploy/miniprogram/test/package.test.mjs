import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { transformSync } from "esbuild";
import * as module from "../dist/wxgate-client.mjs";

const read = (path) => readFileSync(new URL(`../${path}`, import.meta.url), "utf8");

test("it has under 4 KB, minified and compressed", () => {
  for (const [file, format] of [["wxgate-client.js", "cjs"], ["wxgate-client.mjs", "esm"]]) {
    const { code } = transformSync(read(`dist/${file}`), { minify: true, format });
    const size = gzipSync(code, { level: 9 }).length;
    assert.ok(size < 4096, `${file}: ${size} bytes`);
  }
});

test("it is one module for CommonJS and ES", () => {
  const required = createRequire(import.meta.url)("../dist/wxgate-client.js");
  assert.deepEqual(Object.keys(required).sort(), ["WxgateError", "createClient"]);
  assert.deepEqual(Object.keys(module).sort(), ["WxgateError", "createClient"]);
});

test("it needs nothing that old phones lack, and no other package", () => {
  const text = read("dist/wxgate-client.js");
  transformSync(text, { target: "es2015" });
  assert.doesNotMatch(text, /\brequire\(|\basync |\?\.|\?\?|\.\.\.[a-z]+ }/);
  assert.equal(JSON.parse(read("package.json")).dependencies, undefined);
});

test("the example has the client that is built here", () => {
  const is = read("example/wxgate-client.js") === read("dist/wxgate-client.js");
  assert.ok(is, "run: npm run example");
});

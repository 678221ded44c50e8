// Runs the scenarios one after the other, and writes what they found. See `run`.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

import { Chromium } from './chromium.mjs';
import { SCENARIOS } from './scenarios.mjs';
import { World } from './world.mjs';

const here = fileURLToPath(new URL('.', import.meta.url));
const root = resolve(here, '../..');
const arguments_ = process.argv.slice(2);
const usage = (message) => {
    console.error(message);
    process.exit(2);
};

let wxgate = join(root, 'target/release/wxgate');
let written = false;
const chosen = [];
while (arguments_.length > 0) {
    const argument = arguments_.shift();
    if (argument === '--wxgate') wxgate = resolve(arguments_.shift() ?? usage('--wxgate PATH'));
    else if (argument === '--write') written = true;
    else if (argument === '--list') {
        console.log(Object.keys(SCENARIOS).join('\n'));
        process.exit(0);
    } else if (argument in SCENARIOS) chosen.push(argument);
    else usage(`no such scenario: ${argument}`);
}
if (!existsSync(wxgate)) usage(`${wxgate} is missing: cargo build --release`);

const DEADLINE = 180_000;
const work = mkdtempSync(join(tmpdir(), 'wxgate-browser-'));
const promises = [];
const chromium = new Chromium(join(root, 'target/browser'));
const world = new World({ wxgate, work, root, chromium, say });
let outcome = 1;
try {
    await world.start();
    for (const name of chosen.length > 0 ? chosen : Object.keys(SCENARIOS)) {
        world.scenario = name;
        const late = timer(`it takes longer than ${DEADLINE / 1000} s`);
        try {
            await Promise.race([SCENARIOS[name](world), late.promise]);
        } catch (failure) {
            // Whatever it is, the other scenarios go on.
            world.promise('the scenario ends', false, `${failure.stack ?? failure}`.slice(0, 1500));
        } finally {
            late.stop();
            await chromium.closeContexts();
        }
    }
    const count = (wanted) => promises.filter((promise) => promise.outcome === wanted).length;
    if (written) write(chromium.version);
    console.log(`${count('passed')} passed, ${count('FAILED')} failed, ${count('SKIPPED')} skipped`);
    outcome = count('FAILED') > 0 ? 1 : 0;
} finally {
    await world.stop();
    rmSync(work, { recursive: true, force: true });
}
process.exit(outcome);

function say(scenario, text, kept, found) {
    promises.push({ scenario, text, outcome: kept, found });
    console.log(`${scenario}: ${kept}, ${text}${found === '' ? '' : `: ${found}`}`);
}

function timer(message) {
    let stop;
    const promise = new Promise((_, reject) => {
        const handle = setTimeout(() => reject(new Error(message)), DEADLINE);
        stop = () => clearTimeout(handle);
    });
    return { promise, stop };
}

function write(version) {
    const commit = execFileSync('git', ['rev-parse', '--short=12', 'HEAD'], { cwd: root, encoding: 'utf8' }).trim();
    const cell = (text) => `${text}`.split('\n')[0].replaceAll('|', '/');
    // One row for what several people found.
    const rows = new Map();
    for (const { scenario, text, outcome, found } of promises) {
        const [, who = '', promise] = /^(?:((?:phone|desktop)-(?:zh|en))(?:: |, ))?(.*)$/s.exec(text);
        const key = [scenario, promise, outcome].join('\n');
        const row = rows.get(key) ?? { scenario, promise, outcome, found, people: new Set() };
        if (who !== '') row.people.add(who);
        rows.set(key, row);
    }
    const table = [...rows.values()].map(
        ({ scenario, promise, outcome, found, people }) =>
            `| ${cell(scenario)} | ${cell(promise)} | ${[...people].join(', ')} | ${cell(found)} | ${outcome} |`,
    );
    const day = new Date().toISOString().slice(0, 10);
    const lines = [
        '# Browsers: what was promised, and what Chromium found',
        '',
        `Written by \`tests/browser/run --write\` on ${day}, commit ${commit}, ${version}.`,
        '',
        '| scenario | promise | by | found, by the first | result |',
        '|---|---|---|---|---|',
        ...table,
        '',
    ];
    writeFileSync(join(here, 'RESULTS.md'), lines.join('\n'));
}

// What is left in the gateway's log after everything else.
export async function nothing_in_the_log(world) {
    const log = world.log('gateway');
    for (const [what, pattern] of [
        ['codes of WeChat', /(code=|"code":"|user-alice-)/],
        ['states', /state=[0-9A-Za-z]{32}/],
        ['tickets', /wxgate_ticket/],
        ['cookies', /__Host-wxgate[-=]/],
        ['queries', /"path":"[^"]*\?/],
        ['panics', /panicked/],
    ]) {
        const found = log.split('\n').filter((line) => pattern.test(line));
        world.same(`no ${what} in the log`, found.length, 0);
    }
    const errors = log.split('\n').filter((line) => line.includes('"status":500'));
    world.same('no status 500', errors.length, 0);
}

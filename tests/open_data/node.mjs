// Says the same as cases.py about its cases, with node's crypto: the bytes under each key, and
// the signatures.
import assert from 'node:assert';
import { createDecipheriv, createHash, createHmac } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { createInterface } from 'node:readline';

let cases = 0;
for await (const line of createInterface({ input: createReadStream(process.argv[2]) })) {
    const one = JSON.parse(line);
    const data = Buffer.from(one.encrypted_data.replaceAll(' ', '+'), 'base64');
    const iv = Buffer.from(one.iv.replaceAll(' ', '+'), 'base64');
    for (const [index, expected] of one.under.entries()) {
        const key = Buffer.from(one.keys[index], 'base64');
        const cipher = createDecipheriv('aes-128-cbc', key, iv);
        let found = null;
        try {
            const plaintext = Buffer.concat([cipher.update(data), cipher.final()]);
            found = createHash('sha256').update(plaintext).digest('hex');
            if (one.plaintext !== null && plaintext.equals(Buffer.from(one.plaintext))) {
                // What is passed on is JSON for others, too.
                assert(typeof JSON.parse(one.plaintext).watermark.appid === 'string');
            }
        } catch (error) {
            if (error.code !== 'ERR_OSSL_BAD_DECRYPT') throw error;
        }
        assert.strictEqual(found, expected, line);
    }
    const signed = (key) => createHash('sha1').update(one.raw_data).update(key).digest('hex');
    assert.strictEqual(one.keys.map(signed).includes(one.signature.toLowerCase()), one.is_signed, line);
    const mac = createHmac('sha256', one.signer).update(one.raw_data).digest('hex');
    assert.strictEqual(mac, one.mac, line);
    cases += 1;
}
console.log(`node's crypto agrees on ${cases} cases`);

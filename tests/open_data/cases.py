"""Random open data and signatures, and what is right for each, one JSON object a line.

Nothing here is derived from the gateway's code: what is valid is read from RFC 5652 (padding), RFC
8259 (JSON), and the documentation of the gateway. A tenth of the cases is damaged; some of them are
valid all the same, so every case is judged by what it says, not by how it was made.
"""

import base64
import collections
import hashlib
import hmac
import json
import random
import re
import sys

from Crypto.Cipher import AES

BLOCK = 16
MOST_AHEAD = 60
STRANGE = "\x00\x01\x1f\x7f\x80\u00e9\u2028\ufeff\ufffd\uffff\u4f60\u597d\u202e\U0001f600\U0010ffff\"\\/\n\t"


class Invalid(Exception):
    pass


def text(rng, longest):
    kind = rng.randrange(4)
    length = rng.randint(0, longest)
    if kind == 0:
        return "".join(rng.choices("abcXYZ0189 -_{}[]:,", k=length))
    if kind == 1:
        return "".join(rng.choices(STRANGE, k=length))
    if kind == 2:
        return "".join(chr(rng.randint(0x4E00, 0x9FFF)) for _ in range(length))
    points = (rng.randrange(0x110000) for _ in range(length))
    return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)


def value(rng, depth=0):
    kind = rng.randrange(9 if depth < 5 else 6)
    if kind == 0:
        return rng.choice([True, False, None])
    if kind == 1:
        return rng.choice([0, -1, 1, 2**53 + 1, 2**64, -(2**63) - 1, 10**40, rng.getrandbits(40)])
    if kind == 2:
        return rng.choice([0.5, -1e-300, 1.7976931348623157e308, rng.uniform(-1e6, 1e6)])
    if kind < 6:
        return text(rng, 30)
    if kind == 6:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {text(rng, 12): value(rng, depth + 1) for _ in range(rng.randrange(4))}


def plaintext(rng, app, timestamp):
    """An object with a watermark, written in one of many ways."""
    fields = [(text(rng, 12), value(rng)) for _ in range(rng.randrange(6))]
    # Any length: up to some blocks often, some thousand bytes seldom.
    fields.append(("filler", text(rng, 3000 if rng.random() < 0.02 else 40)))
    watermark = [("appid", app), ("timestamp", timestamp)]
    if rng.random() < 0.1:
        watermark.append((text(rng, 8), value(rng)))
    rng.shuffle(watermark)
    fields = [(name, known) for name, known in fields if name != "watermark"]
    fields.append(("watermark", dict(watermark)))
    rng.shuffle(fields)
    separators = rng.choice([(",", ":"), (", ", ": "), (" ,\n", "\t: ")])
    ascii_only = rng.random() < 0.5
    written = json.dumps(dict(fields), ensure_ascii=ascii_only, separators=separators,
                         indent=rng.choice([None, None, 1]))
    return rng.choice(["", "", "", " ", "\r\n\t"]) + written + rng.choice(["", "", "", "\n"])


def wrong_shape(rng, app, timestamp):
    """Plaintexts that come near to being valid, or are just valid."""
    mark = json.dumps({"appid": app, "timestamp": timestamp})
    return rng.choice([
        "", "{}", "[]", "null", "7", '""', mark, f'"{app}"',
        f'[{{"watermark":{mark}}}]',
        '{"watermark":null}',
        '{"watermark":"%s"}' % app,
        '{"watermark":["%s",%d]}' % (app, timestamp),
        '{"watermark":[%s]}' % mark,
        '{"watermark":{"appid":"%s"}}' % app,
        '{"watermark":{"timestamp":%d}}' % timestamp,
        '{"watermark":{"appid":"%s","timestamp":"%d"}}' % (app, timestamp),
        '{"watermark":{"appid":"%s","timestamp":%d.0}}' % (app, timestamp),
        '{"watermark":{"appid":"%s","timestamp":%de0}}' % (app, timestamp),
        '{"watermark":{"appid":"%s","timestamp":-%d}}' % (app, timestamp),
        '{"watermark":{"appid":"%s","timestamp":-0}}' % app,
        '{"watermark":{"appid":"%s","timestamp":0%d}}' % (app, timestamp),
        '{"watermark":{"appid":"%s","timestamp":18446744073709551615}}' % app,
        '{"watermark":{"appid":"%s","timestamp":18446744073709551616}}' % app,
        '{"watermark":{"appid":"%s","timestamp":null}}' % app,
        '{"watermark":{"appid":null,"timestamp":%d}}' % timestamp,
        '{"watermark":{"appid":"%s","appid":"%s","timestamp":%d}}' % (app, app, timestamp),
        '{"watermark":%s,"watermark":%s}' % (mark, mark),
        '{"watermark":%s,"w\\u0061termark":%s}' % (mark, mark),
        '{"w\\u0061termark":%s}' % mark,
        '{"Watermark":%s}' % mark,
        '{"x":{"watermark":%s}}' % mark,
        '{"watermark":%s,"x":1,"x":2}' % mark,
        '{"watermark":%s,}' % mark,
        '{"watermark":%s' % mark,
        '{"watermark":%s}}' % mark,
        '{"watermark":%s} {}' % mark,
        '{"watermark":%s}\x00' % mark,
        '\ufeff{"watermark":%s}' % mark,
        '\x0c{"watermark":%s}' % mark,
        '\xa0{"watermark":%s}' % mark,
        '{"watermark":%s,"x":NaN}' % mark,
        '{"watermark":%s,"x":-Infinity}' % mark,
        '{"watermark":%s,"x":01}' % mark,
        '{"watermark":%s,"x":1e999}' % mark,
        '{"watermark":%s,"x":.5}' % mark,
        '{"watermark":%s,"x":"\t"}' % mark,
        '{"watermark":%s,"x":"\\ud800"}' % mark,
        '{"watermark":%s,"x":"\\x41"}' % mark,
        "{'watermark':%s}" % mark,
        '{"watermark":%s/**/}' % mark,
    ])


def encrypt(key, iv, padded):
    return AES.new(key, AES.MODE_CBC, iv).encrypt(padded)


def pad(data):
    missing = BLOCK - len(data) % BLOCK
    return data + bytes([missing]) * missing


def flip(rng, data):
    changed = bytearray(data)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def from_base64(given, what):
    given = given.replace(" ", "+")
    symbols = given.rstrip("=")
    missing = -len(symbols) % 4
    if not re.fullmatch("[A-Za-z0-9+/]*", symbols) or len(given) - len(symbols) not in (0, missing):
        raise Invalid(f"{what} is not base64")
    if missing == 3:
        raise Invalid(f"{what} is not base64")
    decoded = base64.b64decode(symbols + "=" * missing, validate=True)
    # Bits that belong to no byte are 0.
    if base64.b64encode(decoded).decode().rstrip("=") != symbols:
        raise Invalid(f"{what} is not base64")
    return decoded


class Integer(str):
    """An integer as it is written."""


class Object(list):
    """The fields of an object as they are written, repeated ones too."""


def unpadded(padded):
    length = padded[-1]
    if not 1 <= length <= BLOCK or padded[-length:] != bytes([length]) * length:
        return None
    return padded[:-length]


def watermark_in(data):
    """The text and its watermark (appid, timestamp); None if it has none."""
    def constant(_):
        raise ValueError("not JSON")

    def the_only(found, name):
        if not isinstance(found, Object):
            return None
        for other, _ in found:
            # What is compared must be text: half of a pair of surrogates is none.
            other.encode()
        known = [one for other, one in found if other == name]
        return known[0] if len(known) == 1 else None

    try:
        decoded = data.decode("utf-8")
        found = json.loads(decoded, object_pairs_hook=Object, parse_constant=constant,
                           parse_int=Integer, parse_float=lambda written: None)
        watermark = the_only(found, "watermark")
        app, timestamp = the_only(watermark, "appid"), the_only(watermark, "timestamp")
        # So is what it is compared with.
        if type(app) is str:
            app.encode()
    except (ValueError, UnicodeError):
        return None
    if type(app) is not str or type(timestamp) is not Integer:
        return None
    if timestamp.startswith("-") or int(timestamp) >= 2**64:
        return None
    return decoded, app, int(timestamp)


def judge(data, iv, keys, app, now, max_age):
    """The plaintext, or the kind of the error; and the plaintext's bytes under each key."""
    under = []
    try:
        data = from_base64(data, "data")
        if not data or len(data) % BLOCK:
            raise Invalid("not whole blocks")
        iv = from_base64(iv, "iv")
        if len(iv) != BLOCK:
            raise Invalid("iv")
        for key in keys:
            under.append(unpadded(AES.new(key, AES.MODE_CBC, iv).decrypt(data)))
        found = [one for one in under if one is not None]
        found = [one for one in map(watermark_in, found) if one is not None]
        if not found:
            return None, "no key fits", under
        decoded, owner, timestamp = found[0]
        if owner != app:
            raise Invalid("another app")
        if max_age is not None and (now - timestamp > max_age or timestamp - now > MOST_AHEAD):
            raise Invalid("too old")
        return decoded, None, under
    except Invalid:
        return None, "invalid", under


def case(rng):
    app = "wx" + rng.randbytes(8).hex()
    # All of the kept keys, one of which is right.
    keys = [rng.randbytes(16) for _ in range(rng.randint(1, 3))]
    key, iv = rng.choice(keys), rng.randbytes(16)
    now = rng.randrange(1_400_000_000, 2_500_000_000)
    timestamp = max(0, now - rng.choice([0, 1, rng.randrange(1000), rng.randrange(10**8)]))
    max_age = rng.choice([None, None, 2**32 - 1, now - timestamp])
    damage = rng.randrange(12) if rng.random() < 0.1 else None
    plain = plaintext(rng, app, timestamp).encode()
    padded = pad(plain)
    if damage == 0:
        key = rng.randbytes(16)
    elif damage == 1:
        # Another padding, or bytes of it that differ.
        padded = rng.choice([
            flip(rng, padded[-BLOCK:]),
            padded[:-1] + bytes([rng.choice([0, 1, 15, 16, 17, 32, 255])]),
            plain[:len(plain) // BLOCK * BLOCK] or bytes(BLOCK),
            padded + bytes([BLOCK]) * BLOCK,
            padded + bytes(BLOCK),
        ])
    elif damage in (2, 3):
        padded = pad(wrong_shape(rng, app, timestamp).encode())
    elif damage == 4:
        padded = pad(flip(rng, plain))
    elif damage == 5:
        app = rng.choice([app.upper(), app[:-1], "wx" + rng.randbytes(8).hex()])
    elif damage == 6:
        max_age = max(0, now - timestamp + rng.choice([-1, 0, 1]))
        now += rng.choice([0, 1, -60, -61, -120])
    data = encrypt(key, iv, padded)
    if damage == 7:
        data = flip(rng, data)
    elif damage == 8:
        # The plaintext differs in one bit.
        iv = flip(rng, iv)
    elif damage == 9:
        data = data[:-rng.choice([1, 8, 15, BLOCK, 2 * BLOCK])]
    elif damage == 10:
        iv = iv[:-1] if rng.random() < 0.5 else iv + b"\0"
    data, iv = base64.b64encode(data).decode(), base64.b64encode(iv).decode()
    if damage == 11:
        at = rng.randrange(len(data))
        data = data[:at] + rng.choice("%-_=\n\0é") + data[at + rng.randrange(2):]
    if rng.random() < 0.1:
        data, iv = data.rstrip("="), iv.rstrip("=")
    if rng.random() < 0.1:
        data, iv = data.replace("+", " "), iv.replace("+", " ")
    decoded, error, under = judge(data, iv, keys, app, now, max_age)

    texts = [base64.b64encode(one).decode() for one in keys]
    raw = plain.decode()
    signer = rng.choice(texts)
    signature = hashlib.sha1((raw + signer).encode()).hexdigest()
    mac = hmac.new(signer.encode(), raw.encode(), hashlib.sha256).hexdigest()
    if rng.random() < 0.1:
        wrong = [signature[:-1], signature + "0", "", f"{int(signature, 16) ^ 1:040x}", signature[1:] + "g",
                 hashlib.sha1((raw + "x" + signer).encode()).hexdigest(), mac,
                 hashlib.sha1(raw.encode() + base64.b64decode(signer)).hexdigest(), signature + " "]
        signature = rng.choice(wrong)
    if rng.random() < 0.1:
        signature = signature.upper()
    right = [hashlib.sha1((raw + one).encode()).hexdigest() for one in texts]
    return {
        "encrypted_data": data, "iv": iv, "keys": texts, "app_id": app, "now": now, "max_age": max_age,
        "plaintext": decoded, "error": error,
        "under": [one if one is None else hashlib.sha256(one).hexdigest() for one in under],
        "raw_data": raw, "signature": signature, "is_signed": signature.lower() in right,
        "signer": signer, "mac": mac,
    }, damage


def main():
    count, seed = map(int, sys.argv[1:])
    rng = random.Random(seed)
    outcomes = collections.Counter()
    for _ in range(count):
        made, damage = case(rng)
        kind = "whole" if damage is None else "damaged"
        outcomes[f"{kind}: {made['error'] or 'valid'}"] += 1
        outcomes["signature: " + ("valid" if made["is_signed"] else "not valid")] += 1
        print(json.dumps(made))
    for outcome, times in sorted(outcomes.items()):
        print(f"{times:7} {outcome}", file=sys.stderr)
    # What was not damaged is valid.
    assert not any(known in outcomes for known in ("whole: invalid", "whole: no key fits"))


main()

<?php
// An example service: verifies the identity that wxgate has signed.
// Needs firebase/php-jwt 7 (composer require firebase/php-jwt), and the extensions openssl, sodium and apcu.
declare(strict_types=1);

use Firebase\JWT\JWK;
use Firebase\JWT\JWT;

require __DIR__ . '/vendor/autoload.php';

const ALGORITHMS = ['ES256', 'EdDSA'];
const FORM = '/^[\w-]+\.[\w-]+\.[\w-]{86}$/D';    // the library is lenient; signatures of both algorithms have 64 bytes
const KEYS_LIFETIME = 300;    // seconds: the max-age of wxgate's JWKS
const REFETCH_PAUSE = 10;     // seconds: an unknown key may be a new one, but clients can make up as many as they like
JWT::$leeway = 5;             // seconds: the clocks of two machines differ

final class NoKeys extends RuntimeException
{
}

function fetchKeys(): array
{
    $context = stream_context_create(['http' => ['timeout' => 2, 'follow_location' => 0]]);
    $content = @file_get_contents((string) getenv('WXGATE_JWKS_URL'), false, $context);
    $keys = $content === false ? null : json_decode($content, true)['keys'] ?? null;
    if (!is_array($keys)) {
        throw new NoKeys();
    }
    $keys = array_values(array_filter($keys, fn ($key) => in_array($key['alg'] ?? null, ALGORITHMS, true)));
    apcu_store('wxgate-keys', $keys, KEYS_LIFETIME);
    return $keys;
}

/** The keys of wxgate by their ids. All processes share them. */
function keys(string $wanted): array
{
    $keys = apcu_fetch('wxgate-keys') ?: fetchKeys();
    $known = in_array($wanted, array_column($keys, 'kid'), true);
    if (!$known && apcu_add('wxgate-refetch', true, REFETCH_PAUSE)) {
        $keys = fetchKeys();
    }
    return JWK::parseKeySet(['keys' => $keys]);
}

/** What wxgate says about the user. Throws NoKeys, and something else if the token is not valid. */
function verify(string $token): array
{
    if (!preg_match(FORM, $token)) {
        throw new UnexpectedValueException('not a token');
    }
    $header = json_decode(JWT::urlsafeB64Decode(explode('.', $token)[0]), true);
    if (isset($header['crit'])) {    // wxgate has no extensions, and the library does not look
        throw new UnexpectedValueException('an extension');
    }
    $claims = (array) JWT::decode($token, keys($header['kid'] ?? ''));
    $openid = $claims['sub'] ?? null;
    $app = $claims['app_id'] ?? null;
    $valid = ($claims['iss'] ?? null) === getenv('WXGATE_ISSUER')
        && in_array(getenv('WXGATE_AUDIENCE'), (array) ($claims['aud'] ?? []), true)
        && is_int($claims['exp'] ?? null)    // the library does not require it
        && is_string($openid) && $openid !== '' && is_string($app) && $app !== '';
    if (!$valid) {
        throw new UnexpectedValueException('not for this service');
    }
    return [
        'app_id' => $app,
        'openid' => $openid,
        'unionid' => $claims['unionid'] ?? null,
        'user_id' => $claims['user_id'] ?? null,
    ];
}

function respond(int $status, array $body): never
{
    http_response_code($status);
    header('Content-Type: application/json');
    exit(json_encode($body));
}

// Only requests that have come through wxgate and have a user get past this. Without a valid token
// no header of a request can be trusted, also not X-OpenId.
try {
    $identity = verify($_SERVER['HTTP_X_WXGATE_JWT'] ?? '');
} catch (NoKeys) {
    respond(503, ['error' => 'no_keys', 'action' => 'retry']);
} catch (Throwable) {    // a token can be wrong in ways that the library does not expect
    respond(401, ['error' => 'not_logged_in', 'action' => 'login']);
}

match ($_SERVER['REQUEST_METHOD'] . ' ' . $_SERVER['REQUEST_URI']) {
    'GET /me' => respond(200, $identity),
    // The headers say the same without a signature. They are read after the token was verified, never instead.
    'GET /headers' => respond(200, [
        'app_id' => $_SERVER['HTTP_X_APPID'] ?? null,
        'openid' => $_SERVER['HTTP_X_OPENID'] ?? null,
        'unionid' => $_SERVER['HTTP_X_UNIONID'] ?? null,
        'user_id' => $_SERVER['HTTP_X_USER_ID'] ?? null,
    ]),
    default => respond(404, ['error' => 'not_found', 'action' => 'none']),
};

<?php

namespace App\Http\Middleware;

use Closure;
use Firebase\JWT\JWK;
use Firebase\JWT\JWT;
use Illuminate\Http\Request;
use Illuminate\Support\Facades\Cache;
use Illuminate\Support\Facades\Http;
use Symfony\Component\HttpFoundation\Response;
use Throwable;
use UnexpectedValueException;

/**
 * Verifies the identity that wxgate has signed, and keeps it as the request's attribute "identity".
 *
 * It needs firebase/php-jwt 7, a cache that all processes share, and in config/services.php:
 *
 *     'wxgate' => [
 *         'jwks_url' => env('WXGATE_JWKS_URL'),
 *         'issuer' => env('WXGATE_ISSUER'),
 *         'audience' => env('WXGATE_AUDIENCE'),
 *     ],
 *
 * Only requests that have come through wxgate and have a user get past it. Without a valid token no
 * header of a request can be trusted, also not X-OpenId.
 */
final class VerifyIdentity
{
    private const ALGORITHMS = ['ES256', 'EdDSA'];
    private const FORM = '/^[\w-]+\.[\w-]+\.[\w-]{86}$/D';    // the library is lenient
    private const KEYS_LIFETIME = 300;    // seconds: the max-age of wxgate's JWKS
    private const REFETCH_PAUSE = 10;     // seconds: clients can make up as many unknown keys as they like
    private const LEEWAY = 5;             // seconds: the clocks of two machines differ

    public function handle(Request $request, Closure $next): Response
    {
        $token = $request->header('X-Wxgate-Jwt', '');
        if (!preg_match(self::FORM, $token)) {
            return $this->unauthorized();
        }
        $header = json_decode(JWT::urlsafeB64Decode(explode('.', $token)[0]), true);
        if (isset($header['crit'])) {    // wxgate has no extensions, and the library does not look
            return $this->unauthorized();
        }
        try {
            $keys = $this->keys($header['kid'] ?? null);
        } catch (Throwable $e) {
            report($e);
            return response()->json(['error' => 'no_keys', 'action' => 'retry'], 503);
        }
        try {
            JWT::$leeway = self::LEEWAY;
            $claims = (array) JWT::decode($token, JWK::parseKeySet(['keys' => $keys]));
            $request->attributes->set('identity', $this->identity($claims));
        } catch (Throwable) {    // a token can be wrong in ways that the library does not expect
            return $this->unauthorized();
        }
        return $next($request);
    }

    private function identity(array $claims): array
    {
        $openid = $claims['sub'] ?? null;
        $app = $claims['app_id'] ?? null;
        $valid = ($claims['iss'] ?? null) === config('services.wxgate.issuer')
            && in_array(config('services.wxgate.audience'), (array) ($claims['aud'] ?? []), true)
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

    private function keys(mixed $wanted): array
    {
        $keys = Cache::remember('wxgate-keys', self::KEYS_LIFETIME, fn () => $this->fetch());
        $known = in_array($wanted, array_column($keys, 'kid'), true);
        if (!$known && Cache::add('wxgate-refetch', true, self::REFETCH_PAUSE)) {
            $keys = $this->fetch();
            Cache::put('wxgate-keys', $keys, self::KEYS_LIFETIME);
        }
        return $keys;
    }

    private function fetch(): array
    {
        $keys = Http::timeout(2)->get(config('services.wxgate.jwks_url'))->throw()->json('keys');
        return array_values(array_filter($keys, fn ($key) => in_array($key['alg'] ?? null, self::ALGORITHMS, true)));
    }

    private function unauthorized(): Response
    {
        return response()->json(['error' => 'not_logged_in', 'action' => 'login'], 401);
    }
}
